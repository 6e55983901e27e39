//! Whether a program needs anything but the kernel.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Program header type of the path of the dynamic loader (elf(5)).
const PT_INTERP: u32 = 3;

/// Refuses a program that asks for a dynamic loader.
pub fn ensure_static(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path)?;
    ensure!(!has_interpreter(&bytes)?, "is linked dynamically");
    Ok(())
}

/// Whether a 64-bit little-endian ELF file has a PT_INTERP header.
fn has_interpreter(bytes: &[u8]) -> Result<bool> {
    ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "is no 64-bit little-endian ELF file");
    let number = |at: usize, length: usize| -> Result<usize> {
        let field = bytes.get(at..at + length).context("is cut short")?;
        Ok(field.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
    };
    // e_phoff, e_phentsize, e_phnum.
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let at = size.checked_mul(index).and_then(|at| at.checked_add(offset)).context("is malformed")?;
        if number(at, 4)? == PT_INTERP as usize {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kinds: &[u32]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = kinds.len() as u8;
        for kind in kinds {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.resize(bytes.len() + 52, 0);
        }
        bytes
    }

    #[test]
    fn interpreter_is_found() {
        assert!(!has_interpreter(&file(&[1, 2])).unwrap());
        assert!(has_interpreter(&file(&[6, 3, 1])).unwrap());
        assert!(has_interpreter(b"#!/bin/sh").is_err());
        assert!(has_interpreter(&file(&[1, 1])[..100]).is_err());
        // This test itself is linked as usual.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(has_interpreter(&own).unwrap());
    }
}
