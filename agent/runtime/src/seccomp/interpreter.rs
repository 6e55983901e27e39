//! A classic BPF machine for tests: just the instructions that the compiler emits.

/// Runs a filter on one call and gives its answer.
pub fn run(program: &[u64], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&nr.to_le_bytes());
    data.extend_from_slice(&arch.to_le_bytes());
    data.extend_from_slice(&0u64.to_le_bytes());
    for arg in args {
        data.extend_from_slice(&arg.to_le_bytes());
    }
    let (mut pc, mut acc) = (0usize, 0u32);
    loop {
        let insn = program[pc];
        let (code, jt, jf, k) = (insn as u16, (insn >> 16) as u8, (insn >> 24) as u8, (insn >> 32) as u32);
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        pc += 1;
        match code {
            0x20 => {
                let at = k as usize;
                acc = u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
            }
            0x54 => acc &= k,
            0x05 => pc += k as usize,
            0x15 => pc += jump(acc == k),
            0x25 => pc += jump(acc > k),
            0x35 => pc += jump(acc >= k),
            0x06 => return k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}
