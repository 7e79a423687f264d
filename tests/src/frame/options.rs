//! TCP options as they stand in a header.

use std::fmt;

/// One option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opt {
    End,
    Nop,
    Mss(u16),
    WindowScale(u8),
    SackPermitted,
    /// Left and right edge of each block.
    Sack(Vec<(u32, u32)>),
    Timestamps {
        val: u32,
        echo: u32,
    },
    /// Any bytes, malformed ones too.
    Raw(Vec<u8>),
}

impl Opt {
    /// The options of a SYN in the order in which Linux writes them (`tcp_options_write`).
    pub fn linux_syn(
        mss: u16,
        window_scale: Option<u8>,
        sack: bool,
        timestamps: Option<(u32, u32)>,
    ) -> Vec<Self> {
        let mut options = vec![Self::Mss(mss)];
        match (timestamps, sack) {
            (Some((val, echo)), true) => {
                options.extend([Self::SackPermitted, Self::Timestamps { val, echo }]);
            }
            (Some((val, echo)), false) => {
                options.extend([Self::Nop, Self::Nop, Self::Timestamps { val, echo }]);
            }
            (None, true) => options.extend([Self::Nop, Self::Nop, Self::SackPermitted]),
            (None, false) => {}
        }
        if let Some(scale) = window_scale {
            options.extend([Self::Nop, Self::WindowScale(scale)]);
        }
        options
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::End => out.push(0),
            Self::Nop => out.push(1),
            Self::Mss(mss) => {
                out.extend([2, 4]);
                out.extend(mss.to_be_bytes());
            }
            Self::WindowScale(scale) => out.extend([3, 3, *scale]),
            Self::SackPermitted => out.extend([4, 2]),
            Self::Sack(blocks) => {
                out.extend([5, 2 + 8 * blocks.len() as u8]);
                for (left, right) in blocks {
                    out.extend(left.to_be_bytes());
                    out.extend(right.to_be_bytes());
                }
            }
            Self::Timestamps { val, echo } => {
                out.extend([8, 10]);
                out.extend(val.to_be_bytes());
                out.extend(echo.to_be_bytes());
            }
            Self::Raw(bytes) => out.extend(bytes),
        }
    }

    /// Reads an option area; what does not parse ends up as one [`Opt::Raw`].
    pub(super) fn read_all(mut area: &[u8]) -> Vec<Self> {
        let mut options = Vec::new();
        while let Some((kind, rest)) = area.split_first() {
            let (option, len) = match (kind, rest.first().map_or(0, |len| usize::from(*len))) {
                (0, _) if rest.iter().all(|byte| *byte == 0) => {
                    options.extend(std::iter::repeat_n(Self::End, area.len()));
                    return options;
                }
                (1, _) => (Self::Nop, 1),
                (_, len) if len < 2 || len > area.len() => (Self::Raw(area.to_vec()), area.len()),
                (2, 4) => (Self::Mss(u16::from_be_bytes([area[2], area[3]])), 4),
                (3, 3) => (Self::WindowScale(area[2]), 3),
                (4, 2) => (Self::SackPermitted, 2),
                (5, len) if len % 8 == 2 => {
                    let edges: Vec<u32> = area[2..len].chunks_exact(4).map(word).collect();
                    (Self::Sack(edges.chunks_exact(2).map(|edge| (edge[0], edge[1])).collect()), len)
                }
                (8, 10) => (Self::Timestamps { val: word(&area[2..6]), echo: word(&area[6..10]) }, 10),
                (_, len) => (Self::Raw(area[..len].to_vec()), len),
            };
            options.push(option);
            area = &area[len..];
        }
        options
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl fmt::Display for Opt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => write!(f, "end"),
            Self::Nop => write!(f, "nop"),
            Self::Mss(mss) => write!(f, "mss {mss}"),
            Self::WindowScale(scale) => write!(f, "ws {scale}"),
            Self::SackPermitted => write!(f, "sackOK"),
            Self::Sack(blocks) => {
                write!(f, "sack")?;
                blocks.iter().try_for_each(|(left, right)| write!(f, " {left}-{right}"))
            }
            Self::Timestamps { val, echo } => write!(f, "ts {val} {echo}"),
            Self::Raw(bytes) => write!(f, "raw {bytes:02x?}"),
        }
    }
}
