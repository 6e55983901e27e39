//! bpf(2), as far as the test bed calls it by itself. Numbers are those of linux/bpf.h.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_SCHED_CLS: u64 = 3;
const BPF_TCX_INGRESS: u64 = 46;
const BPF_TCX_EGRESS: u64 = 47;
const BPF_FUNC_GET_PRANDOM_U32: i32 = 7;

/// Calls bpf(2).
///
/// # Safety
/// What `attr` points at must be as the command wants it.
pub(super) unsafe fn bpf(command: libc::c_int, attr: &mut [u64; 16]) -> std::io::Result<i32> {
    // SAFETY: attr is a live, writable buffer of the size given; the rest is the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), std::mem::size_of_val(attr)) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(std::io::Error::last_os_error)
}

/// One instruction: code, destination register, offset, immediate value.
fn instruction(code: u8, register: u8, offset: i16, value: i32) -> u64 {
    let [o0, o1] = offset.to_le_bytes();
    let [v0, v1, v2, v3] = value.to_le_bytes();
    u64::from_le_bytes([code, register, o0, o1, v0, v1, v2, v3])
}

// Codes of instructions: set a register to a value, call a helper, end.
const SET: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Instructions that do something with so many of a hundred packets, and leave the others to whoever comes next.
fn some_packets(percent: u8, action: &[u64]) -> Vec<u64> {
    const MODULO: u8 = 0x97;
    const JUMP_IF_LESS: u8 = 0xa5;
    const TCX_NEXT: i32 = -1;
    let choice = [
        instruction(CALL, 0, 0, BPF_FUNC_GET_PRANDOM_U32),
        instruction(MODULO, 0, 0, 100),
        instruction(JUMP_IF_LESS, 0, 2, percent.into()),
        instruction(SET, 0, 0, TCX_NEXT),
        instruction(EXIT, 0, 0, 0),
    ];
    [&choice, action, &[instruction(EXIT, 0, 0, 0)]].concat()
}

/// Drops so many of a hundred packets that a link of the thread's own network namespace sends and receives, for as long as
/// the descriptors are open. (TCX, kernel 6.6.)
pub(super) fn drop_packets(link: u32, percent: u8) -> Result<[OwnedFd; 2]> {
    const TCX_DROP: i32 = 2;
    let program = load(&some_packets(percent, &[instruction(SET, 0, 0, TCX_DROP)]))?;
    Ok([attach(&program, link, BPF_TCX_INGRESS)?, attach(&program, link, BPF_TCX_EGRESS)?])
}

/// Sends so many of a hundred packets that a link receives out of another one instead, or, `inwards`, has the other one
/// receive them; for as long as the descriptor is open.
pub(super) fn divert_packets(link: u32, percent: u8, to: u32, inwards: bool) -> Result<OwnedFd> {
    const BPF_FUNC_REDIRECT: i32 = 23;
    const BPF_F_INGRESS: i32 = 1;
    let action = [
        instruction(SET, 1, 0, to.try_into()?),
        instruction(SET, 2, 0, if inwards { BPF_F_INGRESS } else { 0 }),
        instruction(CALL, 0, 0, BPF_FUNC_REDIRECT),
    ];
    attach(&load(&some_packets(percent, &action))?, link, BPF_TCX_INGRESS)
}

fn load(instructions: &[u64]) -> Result<OwnedFd> {
    // struct { __u32 prog_type; __u32 insn_cnt; __aligned_u64 insns; __aligned_u64 license; … }, little endian.
    let mut attr = [0u64; 16];
    attr[0] = BPF_PROG_TYPE_SCHED_CLS | ((instructions.len() as u64) << 32);
    attr[1] = instructions.as_ptr() as u64;
    attr[2] = c"Apache-2.0".as_ptr() as u64;
    // SAFETY: instructions and licence live across the call, and so many instructions are there.
    let program = unsafe { bpf(BPF_PROG_LOAD, &mut attr) }.context("load a program for packets")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

fn attach(program: &OwnedFd, link: u32, place: u64) -> Result<OwnedFd> {
    // struct { __u32 prog_fd; __u32 target_ifindex; __u32 attach_type; __u32 flags; … }
    let mut attr = [0u64; 16];
    attr[0] = u64::from(program.as_raw_fd().unsigned_abs()) | (u64::from(link) << 32);
    attr[1] = place;
    // SAFETY: the command takes numbers only.
    let attached = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }.context("attach a program for packets")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(attached) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        // As `llvm-objdump` shows: 85 00 00 00 07 00 00 00 call 7; a5 00 02 00 14 00 00 00 if r0 < 20 goto +2.
        let program = some_packets(20, &[]);
        assert_eq!(program[0].to_le_bytes(), [0x85, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(program[2].to_le_bytes(), [0xa5, 0, 2, 0, 20, 0, 0, 0]);
        assert_eq!(program[3].to_le_bytes(), [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }
}
