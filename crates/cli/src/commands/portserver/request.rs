//! A request of the port server's protocol: the number of the process that shall have the port, in decimal, on a line.

/// Longer requests are refused, as by portpicker's own server.
pub(crate) const LONGEST: usize = 20;

/// Why a text is not such a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a request is not the number of a process")]
    NotANumber,
    #[error("a request names process {0}, which cannot have a port")]
    NoProcess(i64),
}

/// The process that a request names; never 0 or negative.
pub(crate) fn process_of(request: &[u8]) -> Result<i32, Malformed> {
    let text = std::str::from_utf8(request).ok().filter(|text| text.len() <= LONGEST);
    let number = text.and_then(|text| text.trim().parse::<i64>().ok()).ok_or(Malformed::NotANumber)?;
    i32::try_from(number).ok().filter(|pid| *pid > 0).ok_or(Malformed::NoProcess(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_number() {
        assert_eq!(process_of(b"4711\n"), Ok(4711));
        assert_eq!(process_of(b"4711"), Ok(4711));
        for wrong in [&b""[..], b"\n", b"x\n", b"12 13\n", b"000000000000000000042\n"] {
            assert_eq!(process_of(wrong), Err(Malformed::NotANumber), "{wrong:?}");
        }
        for (wrong, number) in [(&b"0\n"[..], 0), (b"-5\n", -5), (b"99999999999\n", 99_999_999_999)] {
            assert_eq!(process_of(wrong), Err(Malformed::NoProcess(number)));
        }
    }
}
