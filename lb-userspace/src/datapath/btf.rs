//! Where fields lie in the running kernel's structures: its own type information (BTF, Documentation/bpf/btf.rst). The loader
//! reads it for its relocations and tells nobody; of its format only structures and their fields matter here.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Offsets in bytes of fields that are asked for as (structure, field), in that order.
///
/// # Errors
/// The kernel has no type information, or not of such a field.
pub(super) fn offsets<const N: usize>(fields: [(&str, &str); N]) -> io::Result<[u32; N]> {
    let bytes = std::fs::read(Path::new("/sys/kernel/btf/vmlinux"))?;
    let types = Types::read(&bytes).ok_or_else(|| lacks("it is not of a form that is known"))?;
    let mut found = [0; N];
    for (place, (structure, field)) in found.iter_mut().zip(fields) {
        *place = types.offset(structure, field).ok_or_else(|| lacks(&format!("no {structure}.{field}")))?;
    }
    Ok(found)
}

fn lacks(what: &str) -> io::Error {
    io::Error::other(format!("the kernel's type information: {what}"))
}

const MAGIC: u16 = 0xeb9f;
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;
/// Bytes of `struct btf_type`, and of one field behind it.
const TYPE: usize = 12;
const FIELD: usize = 12;
/// Structures without names in one another; more than any kernel has.
const DEEPEST: u32 = 8;

/// The type section, indexed.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Type id, from 1 → where it begins.
    at: Vec<usize>,
    structures: BTreeMap<&'a [u8], u32>,
}

impl<'a> Types<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let section = |at: usize| {
            let begin = header + word(bytes, at)? as usize;
            bytes.get(begin..begin + word(bytes, at + 4)? as usize)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut found = Self { types, strings, at: vec![0], structures: BTreeMap::new() };
        let mut at = 0;
        while at < types.len() {
            let info = word(types, at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == STRUCT {
                let id = found.at.len() as u32;
                found.structures.insert(found.name(word(types, at)?)?, id);
            }
            found.at.push(at);
            at += TYPE
                + match kind {
                    INT | VAR | DECL_TAG => 4,
                    ARRAY => 12,
                    STRUCT | UNION => count * FIELD,
                    ENUM | FUNC_PROTO => count * 8,
                    DATASEC | ENUM64 => count * 12,
                    _ => 0,
                };
        }
        Some(found)
    }

    fn name(&self, at: u32) -> Option<&'a [u8]> {
        self.strings.get(at as usize..)?.split(|byte| *byte == 0).next()
    }

    /// Offset in bytes of a field of a structure.
    fn offset(&self, structure: &str, field: &str) -> Option<u32> {
        let bits = self.bits(*self.structures.get(structure.as_bytes())?, field, DEEPEST)?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Offset in bits of a field, which may stand in a structure or union without a name.
    fn bits(&self, id: u32, field: &str, depth: u32) -> Option<u32> {
        let at = *self.at.get(id as usize)?;
        let info = word(self.types, at + 4)?;
        if !matches!(info >> 24 & 0x1f, STRUCT | UNION) {
            return None;
        }
        (0..(info & 0xffff) as usize).find_map(|index| {
            let at = at + TYPE + index * FIELD;
            let [name, of, offset] = [0, 4, 8].map(|word_at| word(self.types, at + word_at));
            // With bit fields in the structure the upper byte is a field's size.
            let offset = if info >> 31 != 0 { offset? & 0xff_ffff } else { offset? };
            match self.name(name?)? {
                name if name == field.as_bytes() => Some(offset),
                [] if depth > 0 => Some(offset + self.bits(of?, field, depth - 1)?),
                _ => None,
            }
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct a { struct { u32 x; u32 y; }; u32 z : 8; }` with an integer and an array before it.
    fn sample() -> Vec<u8> {
        let strings = b"\0u32\0a\0x\0y\0z\0";
        let (u32_, a, x, y, z) = (1_u32, 5, 7, 9, 11);
        let kind = |kind: u32, count: u32| kind << 24 | count;
        let words = [
            &[u32_, kind(INT, 0), 4, 32][..],
            &[0, kind(ARRAY, 0), 0, 1, 1, 4],
            &[0, kind(STRUCT, 2), 8, x, 1, 0, y, 1, 32],
            &[a, kind(STRUCT, 2) | 1 << 31, 12, 0, 3, 64, z, 1, 8 << 24 | 128],
        ]
        .concat();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let length = words.len() as u32 * 4;
        for word in [24, 0, length, length, strings.len() as u32].iter().chain(&words) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_also_in_structures_without_names() {
        let bytes = sample();
        let types = Types::read(&bytes).unwrap();
        assert_eq!(
            ["x", "y", "z", "w"].map(|name| types.offset("a", name)),
            [Some(8), Some(12), Some(16), None]
        );
        assert_eq!(types.offset("b", "x"), None);
    }

    #[test]
    fn what_is_cut_off_or_something_else_has_no_types() {
        let bytes = sample();
        assert!(Types::read(b"").is_none() && Types::read(&[0; 64]).is_none());
        for length in 0..bytes.len() {
            let whole = Types::read(&bytes[..length]).is_some_and(|types| types.offset("a", "z").is_some());
            assert!(!whole, "{length} bytes of {}", bytes.len());
        }
    }
}
