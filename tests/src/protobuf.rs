//! Protobuf by hand: enough of it to write an ONNX file and to speak gRPC without the program under test.

/// A field with a number for a value.
pub fn number(field: u32, value: u64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(value)].concat()
}

/// A field with text, bytes or a message in it.
pub fn bytes(field: u32, content: &[u8]) -> Vec<u8> {
    let key = varint(u64::from(field) << 3 | 2);
    [key, varint(content.len() as u64), content.to_vec()].concat()
}

/// The fields that hold text, bytes or a message, in order; `None` when the message is malformed.
pub fn fields(mut message: &[u8]) -> Option<Vec<(u32, &[u8])>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let (key, rest) = read_varint(message)?;
        let (value, rest) = read_varint(rest)?;
        message = match key & 7 {
            0 => rest,
            2 => {
                let (content, rest) = rest.split_at_checked(usize::try_from(value).ok()?)?;
                found.push((u32::try_from(key >> 3).ok()?, content));
                rest
            }
            _ => return None,
        };
    }
    Some(found)
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    while value > 0x7f {
        encoded.push(value as u8 | 0x80);
        value >>= 7;
    }
    encoded.push(value as u8);
    encoded
}

fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (position, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[position + 1..]));
        }
    }
    None
}
