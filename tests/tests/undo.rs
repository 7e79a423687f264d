//! The wrapper that benchmarks run in front of a program: it must put back exactly the frame that is measured.

use anyhow::{Context, Result};
use aya::EbpfLoader;
use aya::maps::{Array, ProgramArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use tests::frame::Segment;
use tests::object::{load_program, path_of};
use tests::testbed::rule::{IMAGE_ROOM, Image, Undo, client_of, scramble};

/// Runs `tb_undo` with `tb_empty` behind it; returns verdict and frame of each run.
fn run(images: &[Vec<u8>], undo: Undo, frame: &[u8], runs: u32) -> Result<Vec<(u32, Vec<u8>)>> {
    tests::require_root();
    let mut ebpf =
        EbpfLoader::new().map_max_entries("TB_IMAGES", images.len() as u32).load_file(path_of("testbed")?)?;
    let empty = load_program(&mut ebpf, "tb_empty", Xdp::load)?.fd()?.try_clone()?;
    let mut next: ProgramArray<_> = ebpf.take_map("TB_NEXT").context("no map TB_NEXT")?.try_into()?;
    next.set(0, &empty, 0)?;
    let mut table: Array<_, Image> = ebpf.take_map("TB_IMAGES").context("no map TB_IMAGES")?.try_into()?;
    for (i, frame) in images.iter().enumerate() {
        let mut image = Image { len: frame.len() as u32, _pad: 0, bytes: [0; IMAGE_ROOM] };
        image.bytes[..frame.len()].copy_from_slice(frame);
        table.set(i as u32, image, 0)?;
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

const XDP_PASS: u32 = 2;

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
fn only_the_head_is_put_back_when_that_is_enough() -> Result<()> {
    let undo = Undo { head: 54, ..Undo::default() };
    let got = run(&[frame(100)], undo, &[0xee; 154], 1)?;
    assert_eq!(got[0].1[..54], frame(100)[..54]);
    assert_eq!(got[0].1[54..], [0xee; 100]);
    Ok(())
}

#[test]
fn clients_come_in_scrambled_order() -> Result<()> {
    for to_client in [0, 1] {
        let undo = Undo { head: 54, clients: 8, to_client, ..Undo::default() };
        let got = run(&[frame(10)], undo, &frame(10), 8)?;
        let ends = got.iter().map(|(verdict, bytes)| {
            assert_eq!(*verdict, XDP_PASS);
            let segment = Segment::parse_lenient(bytes).expect("still a segment");
            if to_client == 1 { segment.dst } else { segment.src }
        });
        let clients = (0..8).map(|n| {
            let (address, port) = client_of(n);
            SocketAddrV4::new(Ipv4Addr::from(address), port)
        });
        assert_eq!(ends.collect::<BTreeSet<_>>(), clients.collect::<BTreeSet<_>>());
    }
    Ok(())
}

#[test]
fn the_scrambled_order_is_a_permutation() {
    for bits in 0..18 {
        let n = 1 << bits;
        let seen: BTreeSet<u32> = (0..n).map(|i| scramble(i, n)).collect();
        assert_eq!(seen.len(), n as usize);
        assert!(seen.into_iter().eq(0..n));
    }
}
