//! HPACK (RFC 7541). The decoder is whole; the encoder writes static and
//! literal fields only, so that encoding is copying and keeps no state.

use std::collections::VecDeque;

use super::tables::{STATIC, huffman};

/// A field block that cannot be read: the connection is lost (section 4.3 of
/// RFC 9113).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a field block cannot be decoded")]
pub struct DecodeError;

/// Longest text accepted, in bytes.
const MAX_TEXT: usize = 64 * 1024;

/// The receiving side of one connection.
pub struct Decoder {
    dynamic: VecDeque<(Vec<u8>, Vec<u8>)>,
    size: usize,
    /// What the peer uses, at most `limit`.
    capacity: usize,
    limit: usize,
    scratch: (Vec<u8>, Vec<u8>),
}

impl Decoder {
    /// `limit` is the SETTINGS_HEADER_TABLE_SIZE that was announced.
    pub fn new(limit: usize) -> Self {
        Self {
            dynamic: VecDeque::new(),
            size: 0,
            capacity: limit,
            limit,
            scratch: Default::default(),
        }
    }

    /// Decodes a whole block; `field` gets each name and value in order.
    pub fn decode(
        &mut self,
        mut block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DecodeError> {
        let mut first = true;
        while let Some(&byte) = block.first() {
            if byte & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let (name, value) = self.entry(index)?;
                field(name, value);
            } else if byte & 0x40 != 0 {
                self.literal(&mut block, 6, true, &mut field)?;
            } else if byte & 0x20 != 0 {
                // Only at the start of a block (section 4.2).
                let size = integer(&mut block, 5)?;
                if !first || size > self.limit {
                    return Err(DecodeError);
                }
                self.capacity = size;
                self.evict(0);
                continue;
            } else {
                self.literal(&mut block, 4, false, &mut field)?;
            }
            first = false;
        }
        Ok(())
    }

    fn literal(
        &mut self,
        block: &mut &[u8],
        prefix: u8,
        index: bool,
        field: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DecodeError> {
        let (mut name_room, mut value_room) = std::mem::take(&mut self.scratch);
        let name = match integer(block, prefix)? {
            0 => text(block, &mut name_room)?,
            i => self.entry(i)?.0,
        };
        let value = text(block, &mut value_room)?;
        field(name, value);
        if index {
            let (name, value) = (name.to_vec(), value.to_vec());
            self.insert(name, value);
        }
        self.scratch = (name_room, value_room);
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), DecodeError> {
        let index = index.checked_sub(1).ok_or(DecodeError)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name, value));
        }
        let entry = self.dynamic.get(index - STATIC.len());
        entry
            .map(|(n, v)| (n.as_slice(), v.as_slice()))
            .ok_or(DecodeError)
    }

    fn insert(&mut self, name: Vec<u8>, value: Vec<u8>) {
        let size = name.len() + value.len() + 32;
        self.evict(size);
        if size <= self.capacity {
            self.size += size;
            self.dynamic.push_front((name, value));
        }
    }

    /// Makes room for `more` bytes (section 4.4).
    fn evict(&mut self, more: usize) {
        while self.size + more > self.capacity {
            let Some((name, value)) = self.dynamic.pop_back() else {
                break;
            };
            self.size -= name.len() + value.len() + 32;
        }
    }
}

/// Section 5.1. At most four continuation bytes: nothing valid is larger.
fn integer(block: &mut &[u8], prefix: u8) -> Result<usize, DecodeError> {
    let (&first, mut rest) = block.split_first().ok_or(DecodeError)?;
    let mask = (1usize << prefix) - 1;
    let mut value = first as usize & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&byte, tail) = rest.split_first().ok_or(DecodeError)?;
            rest = tail;
            value += ((byte & 0x7f) as usize) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return Err(DecodeError);
            }
        }
    }
    *block = rest;
    Ok(value)
}

/// Section 5.2. What is Huffman-coded is decoded into `out`.
fn text<'o, 'b: 'o>(block: &mut &'b [u8], out: &'o mut Vec<u8>) -> Result<&'o [u8], DecodeError> {
    let coded = block.first().ok_or(DecodeError)? & 0x80 != 0;
    let length = integer(block, 7)?;
    if length > MAX_TEXT {
        return Err(DecodeError);
    }
    let (bytes, rest) = block.split_at_checked(length).ok_or(DecodeError)?;
    *block = rest;
    if !coded {
        return Ok(bytes);
    }
    out.clear();
    let table = huffman();
    let mut node = 0;
    for byte in bytes {
        for bits in [byte >> 4, byte & 15] {
            let step = table
                .steps
                .get(node as usize)
                .and_then(|row| row.get(bits as usize))
                .ok_or(DecodeError)?;
            if step.invalid {
                return Err(DecodeError);
            }
            out.extend(step.emit);
            node = step.next;
        }
    }
    let accepted = table.accepting.get(node as usize).copied();
    match accepted {
        Some(true) => Ok(out),
        _ => Err(DecodeError),
    }
}

/// Appends a field as a literal that is not indexed (section 6.2.2).
pub fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    put_text(out, name);
    put_text(out, value);
}

/// As `put_field`, with the name in lower case.
pub fn put_field_lower(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    put_integer(out, 7, 0, name.len());
    out.extend(name.iter().map(u8::to_ascii_lowercase));
    put_text(out, value);
}

/// Appends a field whose name is in the static table.
pub fn put_named(out: &mut Vec<u8>, static_name: u8, value: &[u8]) {
    put_integer(out, 4, 0, static_name as usize);
    put_text(out, value);
}

/// Appends a whole field of the static table (section 6.1).
pub fn put_indexed(out: &mut Vec<u8>, index: u8) {
    out.push(0x80 | index);
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_integer(out, 7, 0, text.len());
    out.extend_from_slice(text);
}

fn put_integer(out: &mut Vec<u8>, prefix: u8, pattern: u8, value: usize) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 & 0x7f | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(decoder: &mut Decoder, hex: &str) -> Vec<(String, String)> {
        let block: Vec<u8> = (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[i * 2..i * 2 + 2], 16).unwrap())
            .collect();
        let mut fields = Vec::new();
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        decoder
            .decode(&block, |n, v| fields.push((text(n), text(v))))
            .unwrap();
        fields
    }

    #[test]
    fn the_examples_of_rfc_7541_appendix_c4_decode() {
        let mut decoder = Decoder::new(4096);
        let first = decode(&mut decoder, "828684418cf1e3c2e5f23a6ba0ab90f4ff");
        assert_eq!(first[3], (":authority".into(), "www.example.com".into()));
        let second = decode(&mut decoder, "828684be5886a8eb10649cbf");
        assert_eq!(second[3].1, "www.example.com");
        assert_eq!(second[4], ("cache-control".into(), "no-cache".into()));
        let third = decode(
            &mut decoder,
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        );
        assert_eq!(third[4], ("custom-key".into(), "custom-value".into()));
    }

    #[test]
    fn entries_leave_the_table_as_it_fills() {
        // RFC 7541 appendix C.6: a table of 256 bytes.
        let mut decoder = Decoder::new(256);
        decode(
            &mut decoder,
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        );
        let second = decode(&mut decoder, "4883640effc1c0bf");
        assert_eq!(second[0], (":status".into(), "307".into()));
        assert_eq!(second[3].1, "https://www.example.com");
    }

    #[test]
    fn what_is_not_hpack_is_refused() {
        for block in [
            &[0x80u8][..],                         // index 0
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f], // an integer without end
            &[0xbe],                               // an empty dynamic table
            &[0x82, 0x20],                         // a size update within the block
            &[0x3f, 0xff, 0xff, 0x7f],             // a table larger than allowed
            &[0x00, 0x85, 1],                      // a text cut short
            &[0x00, 0x81, 0xff, 0x00],             // eight ones: EOS padding too long
        ] {
            assert!(
                Decoder::new(4096).decode(block, |_, _| ()).is_err(),
                "{block:x?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_fields_or_an_error(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..8)) {
            let mut decoder = Decoder::new(4096);
            for block in blocks {
                let _ = decoder.decode(&block, |_, _| ());
            }
        }

        #[test]
        fn what_is_encoded_decodes(name in "[a-z-]{1,20}", value in "[ -~]{0,300}") {
            let mut block = Vec::new();
            put_field(&mut block, name.as_bytes(), value.as_bytes());
            put_named(&mut block, 4, value.as_bytes());
            put_indexed(&mut block, 8);
            let mut fields = Vec::new();
            Decoder::new(0).decode(&block, |n, v| fields.push((n.to_vec(), v.to_vec()))).unwrap();
            prop_assert_eq!(&fields[0], &(name.into_bytes(), value.clone().into_bytes()));
            prop_assert_eq!(&fields[1], &(b":path".to_vec(), value.into_bytes()));
            prop_assert_eq!(&fields[2], &(b":status".to_vec(), b"200".to_vec()));
        }
    }
}
