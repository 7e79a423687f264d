//! That every row can be measured, in a fraction of a second each. Nothing is said about how long anything takes.

use super::*;

#[test]
fn every_row_is_measured_and_every_aim_judged() {
    let place = tempfile::tempdir().unwrap();
    let extent = Extent { rounds: 1, time: Duration::from_millis(60), sessions: 64 };
    let report = measure(place.path(), extent, &Row::ALL).unwrap();
    assert!(report.rows.iter().all(|row| row.samples.len() == 1 && row.samples[0].rate > 0.0));
    let file = place.path().join("rows.json");
    report.write_json(&file).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let text = report.to_string();
    assert_eq!(json["rows"].as_array().unwrap().len(), Row::ALL.len());
    for row in json["rows"].as_array().unwrap() {
        assert!(
            row["per_second"].as_f64().unwrap() > 0.0 && row["p99_us"].as_f64() >= row["p50_us"].as_f64()
        );
        assert!(text.contains(row["name"].as_str().unwrap()), "{text}");
    }
    assert_eq!(json["aims"].as_array().unwrap().len(), rows::AIMS.len());
    for aim in json["aims"].as_array().unwrap() {
        assert!(
            aim["ratio"].as_f64().unwrap() > 0.0 && text.contains(aim["name"].as_str().unwrap()),
            "{text}"
        );
    }
}
