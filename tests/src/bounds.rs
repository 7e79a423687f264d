//! The bounds of the packet programs, as the host compiles them. That kernels see them is shown by loading the programs.

#[path = "../../lb-ebpf/src/bounds.rs"]
#[allow(dead_code, reason = "the product's own; not all of it is used here")]
mod shared;

use shared::{Length, offset};

#[test]
fn lengths_from_one_to_the_maximum_are_lengths() {
    for (len, is) in [(0, None), (1, Some(1)), (39, Some(39)), (40, Some(40)), (41, None), (u32::MAX, None)] {
        assert_eq!(Length::new::<40>(len).map(Length::get), is, "{len}");
    }
    assert_eq!(Length::of::<44>().get(), 44);
}

#[test]
fn lengths_beyond_the_maximum_are_cut_on_request() {
    for (len, is) in [(0, None), (1, Some(1)), (512, Some(512)), (513, Some(512)), (u32::MAX, Some(512))] {
        assert_eq!(Length::at_most::<512>(len).map(Length::get), is, "{len}");
    }
}

#[test]
fn offsets_below_the_room_are_offsets() {
    for (at, is) in [(0, Some(0)), (2919, Some(2919)), (2920, None), (u32::MAX, None)] {
        assert_eq!(offset::<2920>(at), is, "{at}");
    }
}
