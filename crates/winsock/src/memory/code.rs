//! Check the addresses of routines.

use super::{Fault, Memory};

/// Whether a routine can be there: code of the program, of a library, or made at run time. The caller guarantees that
/// it is a routine of the right type.
pub(crate) fn executable(address: usize) -> Result<(), Fault> {
    /// Nonzero, which ends the walk, once the address is found in a segment of code.
    unsafe extern "C" fn look(object: *mut libc::dl_phdr_info, _size: usize, wanted: *mut libc::c_void) -> i32 {
        // SAFETY: the walk passes a valid description, with as many headers as it says.
        let (base, headers) = unsafe {
            let object = &*object;
            (object.dlpi_addr as usize, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
        };
        let code = headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_X != 0);
        let found = code.into_iter().any(|header| {
            let start = base.wrapping_add(header.p_vaddr as usize);
            (start..start.wrapping_add(header.p_memsz as usize)).contains(&(wanted as usize))
        });
        found.into()
    }
    if address == 0 {
        return Err(Fault);
    }
    // SAFETY: `look` has the type the walk wants, and the number passed through is no pointer to it.
    if unsafe { libc::dl_iterate_phdr(Some(look), address as *mut libc::c_void) } != 0 {
        return Ok(());
    }
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return Memory::default().readable(address, 1);
    };
    let found = maps.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { return false };
        let Some((start, end)) = range.split_once('-') else { return false };
        let number = |text| usize::from_str_radix(text, 16);
        rights.contains('x')
            && number(start).is_ok_and(|start| start <= address)
            && number(end).is_ok_and(|end| address < end)
    });
    if found { Ok(()) } else { Err(Fault) }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Pages, *};

    #[test]
    fn code_is_distinguished_from_data() {
        let data = Box::new(7u64);
        assert!(executable(Pages::new as *const () as usize).is_ok());
        assert!(executable(libc::getpid as *const () as usize).is_ok());
        assert!(executable(&raw const *data as usize).is_err());
        assert!(executable(0).is_err() && executable(8).is_err() && executable(usize::MAX).is_err());
        let made = Pages::new(libc::PROT_READ | libc::PROT_EXEC);
        assert!(executable(made.0).is_ok() && executable(made.0 + 4096).is_err());
    }
}
