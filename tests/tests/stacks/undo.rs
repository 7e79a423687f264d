//! The wrapper that benchmarks run in front of a program: it must put back exactly the frame that is measured.

use anyhow::{Context, Result};
use aya::EbpfLoader;
use aya::maps::{Array, ProgramArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use std::net::SocketAddrV4;
use tests::frame::Segment;
use tests::object::{load_program, path_of};
use tests::testbed::rule::{Client, DESTINATION, HEADERS, HEADERS_LEN, Image, SOURCE, Undo};

/// Runs `tb_undo` with `tb_empty` behind it; returns verdict and frame of each run.
fn run(images: &[Vec<u8>], undo: Undo, frame: &[u8], runs: u32) -> Result<Vec<(u32, Vec<u8>)>> {
    tests::require_root();
    let mut ebpf = EbpfLoader::new()
        .map_max_entries("TB_IMAGES", images.len() as u32)
        .map_max_entries("TB_CLIENTS", CLIENTS)
        .load_file(path_of("testbed")?)?;
    let empty = load_program(&mut ebpf, "tb_empty", Xdp::load)?.fd()?.try_clone()?;
    let mut next: ProgramArray<_> = ebpf.take_map("TB_NEXT").context("no map TB_NEXT")?.try_into()?;
    next.set(0, &empty, 0)?;
    let mut table: Array<_, Image> = ebpf.take_map("TB_IMAGES").context("no map TB_IMAGES")?.try_into()?;
    for (i, frame) in images.iter().enumerate() {
        table.set(i as u32, Image::new(frame), 0)?;
    }
    let mut table: Array<_, Client> = ebpf.take_map("TB_CLIENTS").context("no map TB_CLIENTS")?.try_into()?;
    for n in 0..CLIENTS {
        table.set(n, Client::new(client(n)), 0)?;
    }
    let mut state: Array<_, Undo> = ebpf.take_map("TB_UNDO").context("no map TB_UNDO")?.try_into()?;
    state.set(0, undo, 0)?;
    let program: &Xdp = load_program(&mut ebpf, "tb_undo", Xdp::load)?;
    (0..runs)
        .map(|_| {
            let mut out = vec![0; 4096];
            let options = TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            };
            let result = program.test_run(options)?;
            out.truncate(result.data_size_out as usize);
            Ok((result.return_value, out))
        })
        .collect()
}

fn frame(payload: usize) -> Vec<u8> {
    let (src, dst) =
        (SocketAddrV4::new([10, 0, 1, 2].into(), 4), SocketAddrV4::new([10, 0, 9, 1].into(), 80));
    Segment::new(src, dst).payload(vec![payload as u8; payload]).bytes()
}

const XDP_ABORTED: u32 = 0;
const XDP_PASS: u32 = 2;

/// Clients that can take the place of the one in an image.
const CLIENTS: u32 = 4;

fn client(n: u32) -> SocketAddrV4 {
    SocketAddrV4::new([172, 16, 5, n as u8].into(), 50_000 + n as u16)
}

#[test]
fn images_come_in_turn_whatever_the_last_run_left() -> Result<()> {
    let images = [frame(0), frame(500), frame(1200), frame(20)];
    let undo = Undo { image_mask: 3, ..Undo::default() };
    for left in [frame(0), frame(700), frame(1400)] {
        let got = run(&images, undo, &left, 6)?;
        for (i, (verdict, frame)) in got.iter().enumerate() {
            assert_eq!((*verdict, frame), (XDP_PASS, &images[i % 4]), "run {i} over {} bytes", left.len());
        }
    }
    Ok(())
}

#[test]
fn headers_alone_are_put_back_when_that_is_enough() -> Result<()> {
    let undo = Undo { what: HEADERS, ..Undo::default() };
    let got = run(&[frame(100)], undo, &[0xee; 154], 1)?;
    assert_eq!(got[0].1[..HEADERS_LEN], frame(100)[..HEADERS_LEN]);
    assert_eq!(got[0].1[HEADERS_LEN..], [0xee; 154 - HEADERS_LEN]);
    Ok(())
}

#[test]
fn a_frame_of_another_length_is_not_called_restored() -> Result<()> {
    let undo = Undo { what: HEADERS, ..Undo::default() };
    let got = run(&[frame(100)], undo, &frame(101), 1)?;
    assert_eq!(got[0].0, XDP_ABORTED);
    Ok(())
}

#[test]
fn clients_take_turns_at_either_end() -> Result<()> {
    for client_is in [SOURCE, DESTINATION] {
        let undo = Undo { what: HEADERS, client_mask: CLIENTS - 1, client_is, ..Undo::default() };
        let got = run(&[frame(100)], undo, &frame(100), 2 * CLIENTS)?;
        let original = Segment::parse(&frame(100))?;
        for (n, (verdict, bytes)) in got.iter().enumerate() {
            assert_eq!(*verdict, XDP_PASS);
            let segment = Segment::parse_lenient(bytes)?;
            let expected = client(n as u32 % CLIENTS);
            let ends = if client_is == SOURCE { (expected, original.dst) } else { (original.src, expected) };
            assert_eq!((segment.src, segment.dst), ends, "run {n}");
        }
    }
    Ok(())
}
