//! The functions that a wide-character program for Windows needs to print as it does
//! there: its arguments as wide strings, `_wtoi`, and Microsoft's format words.
//!
//! `WCHAR` is the system's `wchar_t`, 32 bits: `L"..."` literals consist of it, and the system's functions accept it. A
//! Windows program can pass such characters on, compare and print them, but it must not assume that they have 16 bits.
//! The narrow form is UTF-8. Bytes that are not UTF-8 become U+DC80..U+DCFF, and are the same bytes again in the
//! output.
//!
//! The printing functions take a `va_list`. Rust has no name for that type,
//! but on every Linux target it is passed as one pointer-sized value, and all
//! that happens to it here is to be passed on.

use std::{
    ffi::{CStr, c_char, c_void},
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use crate::{
    error,
    memory::{Fault, Memory},
};

/// `wchar_t`.
pub type Wide = libc::wchar_t;

type File = libc::FILE;
type VaList = *mut c_void;

unsafe extern "C" {
    fn open_wmemstream(text: *mut *mut Wide, length: *mut usize) -> *mut File;
    fn vfwprintf(stream: *mut File, format: *const Wide, arguments: VaList) -> i32;
    fn vswprintf(text: *mut Wide, length: usize, format: *const Wide, arguments: VaList) -> i32;
    fn vfprintf(stream: *mut File, format: *const c_char, arguments: VaList) -> i32;
    fn vsnprintf(text: *mut c_char, length: usize, format: *const c_char, arguments: VaList) -> i32;
    fn fwide(stream: *mut File, mode: i32) -> i32;
    fn fputws(text: *const Wide, stream: *mut File) -> i32;
}

const ESCAPED: u32 = 0xdc00;

fn widen(bytes: &[u8]) -> Vec<Wide> {
    let mut wide = Vec::with_capacity(bytes.len() + 1);
    for chunk in bytes.utf8_chunks() {
        wide.extend(chunk.valid().chars().map(|letter| letter as Wide));
        wide.extend(chunk.invalid().iter().map(|byte| (ESCAPED + u32::from(*byte)) as Wide));
    }
    wide
}

fn narrow(wide: &[Wide]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(wide.len());
    for unit in wide {
        let code = *unit as u32;
        match code {
            0xdc80..=0xdcff => bytes.push((code - ESCAPED) as u8),
            _ => {
                let letter = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
    }
    bytes
}

/// The arguments of `main` (or the environment) in the form that `wmain` requires. They stay until the process ends.
///
/// # Safety
///
/// `arguments` is a NULL-terminated array of strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn portkeep_ws_wide_arguments(arguments: *const *const c_char) -> *mut *mut Wide {
    /// Leak checkers find the last list here; a list refers to its strings and to the list before it.
    static LISTS: AtomicPtr<*mut Wide> = AtomicPtr::new(ptr::null_mut());
    crate::boundary(ptr::null_mut(), || {
        let mut list = vec![LISTS.load(Ordering::Relaxed).cast::<Wide>()];
        for index in 0.. {
            // SAFETY: the caller's array ends with NULL, which is where this stops.
            let argument = unsafe { *arguments.add(index) };
            if argument.is_null() {
                break;
            }
            // SAFETY: an entry before the NULL is a string.
            let mut wide = widen(unsafe { CStr::from_ptr(argument) }.to_bytes());
            wide.push(0);
            list.push(Box::leak(wide.into_boxed_slice()).as_mut_ptr());
        }
        list.push(ptr::null_mut());
        let list = Box::leak(list.into_boxed_slice()).as_mut_ptr();
        LISTS.store(list, Ordering::Relaxed);
        // SAFETY: the list has at least two entries; the first is the link to the one before.
        unsafe { list.add(1) }
    })
}

/// `_wtoi`: the number at the start, 0 if there is none, the nearest `int` if it is too large.
#[unsafe(no_mangle)]
pub extern "C" fn _wtoi(text: usize) -> i32 {
    crate::boundary(0, || {
        let memory = Memory::default();
        // Reading ends at the first unit that is not part of the number, and at memory that is not mapped.
        let unit = |index: usize| memory.read::<Wide>(text.checked_add(index * size_of::<Wide>())?).ok();
        number(&mut (0..).map_while(|index| (text != 0).then(|| unit(index)).flatten()).map(|unit| unit as u32))
    })
}

fn number(units: &mut dyn Iterator<Item = u32>) -> i32 {
    let mut units = units.skip_while(|unit| matches!(unit, 9..=13 | 32)).peekable();
    let negative = units.next_if(|unit| matches!(*unit, 43 | 45)) == Some(45);
    let mut number = 0i64;
    while let Some(digit) = units.next_if(|unit| matches!(unit, 48..=57)) {
        number = (number * 10 + i64::from(digit - 48)).min(1 << 40);
    }
    let number = if negative { -number } else { number };
    number.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

/// Microsoft's format words in the system's, unit by unit; `wide` is the width of the function itself.
fn translate(format: &[u32], wide: bool) -> Vec<u32> {
    let is = |unit: Option<&u32>, letters: &str| unit.is_some_and(|unit| letters.chars().any(|l| l as u32 == *unit));
    let mut out = Vec::with_capacity(format.len() + 8);
    let mut rest = format;
    while let Some((&unit, after)) = rest.split_first() {
        rest = after;
        out.push(unit);
        if unit != '%' as u32 {
            continue;
        }
        while is(rest.first(), "-+ #0123456789.*'") {
            out.push(rest[0]);
            rest = &rest[1..];
        }
        let mut size = String::new();
        while is(rest.first(), "hlLqjztwIT") {
            size.extend(char::from_u32(rest[0]));
            rest = &rest[1..];
            let digits = if size == "I" && rest.starts_with(&['6' as u32, '4' as u32]) {
                "64"
            } else if size == "I" && rest.starts_with(&['3' as u32, '2' as u32]) {
                "32"
            } else {
                ""
            };
            size.push_str(digits);
            rest = &rest[digits.len()..];
        }
        let Some((&conversion, after)) = rest.split_first() else {
            out.extend(size.chars().map(|letter| letter as u32));
            break;
        };
        rest = after;
        let letter = char::from_u32(conversion).unwrap_or(' ');
        let (size, letter) = match letter {
            's' | 'c' | 'S' | 'C' => {
                // A capital letter means "the other width"; a size word counts before it.
                let wide_text = match size.as_str() {
                    "l" | "w" | "ll" => true,
                    "h" => false,
                    _ => letter.is_lowercase() == wide,
                };
                (if wide_text { "l" } else { "" }, letter.to_ascii_lowercase())
            }
            _ => {
                let size = match size.as_str() {
                    "I64" => "ll",
                    "I32" => "",
                    "I" => "z",
                    "w" | "T" => "",
                    other => other,
                };
                (size, letter)
            }
        };
        out.extend(size.chars().map(|letter| letter as u32));
        out.push(if letter == ' ' { conversion } else { letter as u32 });
    }
    out
}

/// A format that cannot be read is ERROR_INVALID_PARAMETER.
fn fault(_: Fault) -> i32 {
    error::WSA_INVALID_PARAMETER
}

fn translate_wide(format: usize) -> Result<Vec<Wide>, i32> {
    let units: Vec<Wide> = Memory::default().string(format).map_err(fault)?;
    let units: Vec<u32> = units.into_iter().map(|unit| unit as u32).collect();
    Ok(translate(&units, true).into_iter().map(|unit| unit as Wide).chain([0]).collect())
}

fn translate_narrow(format: usize) -> Result<Vec<c_char>, i32> {
    let bytes: Vec<u8> = Memory::default().string(format).map_err(fault)?;
    let units: Vec<u32> = bytes.into_iter().map(u32::from).collect();
    Ok(translate(&units, false).into_iter().map(|unit| unit as u8 as c_char).chain([0]).collect())
}

/// `vfwprintf` with Microsoft's formats. The stream gets UTF-8, so that wide
/// and narrow output may be mixed on it, as on Windows.
///
/// # Safety
///
/// As for the system's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn portkeep_ws_vfwprintf(stream: *mut File, format: usize, arguments: VaList) -> i32 {
    crate::value(-1, || {
        let format = translate_wide(format)?;
        check_stream(stream)?;
        // SAFETY: the caller's promises are passed on; the buffer is freed after its last use.
        unsafe {
            let (mut text, mut length) = (ptr::null_mut(), 0);
            let memory = open_wmemstream(&mut text, &mut length);
            if memory.is_null() {
                return Err(error::WSAENOBUFS);
            }
            let count = vfwprintf(memory, format.as_ptr(), arguments);
            libc::fclose(memory);
            let written = if count < 0 {
                false
            } else if fwide(stream, 0) > 0 {
                // The program made the stream a wide one itself.
                fputws(text, stream) >= 0
            } else {
                let bytes = narrow(std::slice::from_raw_parts(text, length));
                libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), stream) == bytes.len()
            };
            libc::free(text.cast());
            Ok(if written { count } else { -1 })
        }
    })
}

fn check_stream(stream: *mut File) -> Result<(), i32> {
    Memory::default().writable(stream as usize, size_of::<usize>()).map_err(fault)
}

/// `vswprintf` with Microsoft's formats.
///
/// # Safety
///
/// As for the system's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn portkeep_ws_vswprintf(text: *mut Wide, n: usize, format: usize, list: VaList) -> i32 {
    crate::value(-1, || {
        let format = translate_wide(format)?;
        // SAFETY: the caller's promises are passed on.
        Ok(unsafe { vswprintf(text, n, format.as_ptr(), list) })
    })
}

/// `vfprintf` with Microsoft's formats.
///
/// # Safety
///
/// As for the system's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn portkeep_ws_vfprintf(stream: *mut File, format: usize, list: VaList) -> i32 {
    crate::value(-1, || {
        let format = translate_narrow(format)?;
        check_stream(stream)?;
        // SAFETY: the caller's promises are passed on.
        Ok(unsafe { vfprintf(stream, format.as_ptr(), list) })
    })
}

/// `vsnprintf` with Microsoft's formats.
///
/// # Safety
///
/// As for the system's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn portkeep_ws_vsnprintf(text: *mut c_char, length: usize, format: usize, list: VaList) -> i32 {
    crate::value(-1, || {
        let format = translate_narrow(format)?;
        // SAFETY: the caller's promises are passed on.
        Ok(unsafe { vsnprintf(text, length, format.as_ptr(), list) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(text: &str, wide: bool) -> String {
        let units: Vec<u32> = text.chars().map(|letter| letter as u32).collect();
        translate(&units, wide).into_iter().filter_map(char::from_u32).collect()
    }

    #[test]
    fn format_words_are_translated() {
        let cases = [
            ("%s %S %ws %hs %ls %c", true, "%ls %s %ls %s %ls %lc"),
            ("%s %S %ws %hs %ls %C", false, "%s %ls %ls %s %ls %lc"),
            ("Token=%I64d %-08I64x %I32u %Iu", true, "Token=%lld %-08llx %u %zu"),
            ("100%% %d %5.2f %*d %p", true, "100%% %d %5.2f %*d %p"),
            ("%", true, "%"),
            ("%ll", true, "%ll"),
            ("%lu %hd %lld", false, "%lu %hd %lld"),
        ];
        for (microsoft, wide, system) in cases {
            assert_eq!(format(microsoft, wide), system, "{microsoft}");
        }
    }

    #[test]
    fn wtoi_reads_what_is_a_number() {
        for (text, number) in [
            ("20", 20),
            (" -7x", -7),
            ("+3", 3),
            ("x", 0),
            ("", 0),
            ("99999999999999999999", i32::MAX),
            ("-99999999999", i32::MIN),
        ] {
            let wide: Vec<Wide> = text.chars().map(|letter| letter as Wide).chain([0]).collect();
            assert_eq!(_wtoi(wide.as_ptr() as usize), number, "{text}");
        }
    }

    #[test]
    fn bytes_survive_the_way_there_and_back() {
        let bytes = b"caf\xc3\xa9 \xff\xfe\x80";
        assert_eq!(narrow(&widen(bytes)), bytes);
    }
}
