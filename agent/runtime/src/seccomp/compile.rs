//! Rules to classic BPF.
//!
//! Shape: load the architecture; for each known one a binary search over ranges of call numbers that have the same
//! answer, ending in `return action` or in a list of conditions. Every branch is `if test skip one; jump far`, as a
//! conditional jump reaches 255 instructions and an unconditional one all 4096.

use std::collections::BTreeMap;

use super::profile::{Action, Condition, Op, ProfileError, Rule, Rules};
use super::syscalls;

const LD_ABS: u16 = 0x20;
const ALU_AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_AARCH64: u32 = 0xC000_00B7;
/// Longest program that the kernel takes (BPF_MAXINSNS).
const MAX_LEN: usize = 4096;

/// The machine that a filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// x86-64 with 32-bit programs.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Target {
    /// The one this program was built for.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// Go's name of it.
    pub fn go_arch(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

type Table = &'static [(&'static str, u32)];

/// Compiles a filter; each word is one `struct sock_filter`.
pub fn compile(rules: &Rules, target: Target) -> Result<Vec<u64>, ProfileError> {
    let mut arches: Vec<(u32, Table)> = match target {
        Target::X86_64 => vec![(AUDIT_ARCH_X86_64, syscalls::X86_64)],
        Target::Aarch64 => vec![(AUDIT_ARCH_AARCH64, syscalls::AARCH64)],
    };
    if target == Target::X86_64 && rules.compat32 {
        arches.push((AUDIT_ARCH_I386, syscalls::X86));
    }
    let mut asm = Assembler::default();
    asm.push(LD_ABS, ARCH);
    for (audit, table) in arches {
        let next = asm.label();
        asm.branch(JEQ, audit, false, next);
        asm.push(LD_ABS, NR);
        // Calls of the x32 ABI carry bit 30 and so fall behind every range: the default answers them.
        search(&mut asm, &ranges(rules, table), rules.default);
        asm.bind(next);
    }
    asm.push(RET, rules.default);
    asm.finish()
}

/// What to do for a run of call numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range<'a> {
    first: u32,
    answer: Vec<&'a Rule>,
}

/// Rules by call number, then runs of equal answers. Rules with conditions never merge with their neighbours.
fn ranges<'a>(rules: &'a Rules, table: Table) -> Vec<Range<'a>> {
    let mut by_number: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in &rules.rules {
        if let Ok(i) = table.binary_search_by(|(name, _)| (*name).cmp(rule.name.as_str())) {
            let list = by_number.entry(table[i].1).or_default();
            // Behind a rule that always holds nothing is reached.
            if list.last().is_none_or(|last| !last.conditions.is_empty()) {
                list.push(rule);
            }
        }
    }
    let mut out: Vec<Range<'a>> = vec![Range { first: 0, answer: Vec::new() }];
    let mut next = 0;
    for (number, answer) in by_number {
        if number > next {
            push_range(&mut out, next, Vec::new());
        }
        push_range(&mut out, number, answer);
        next = number + 1;
    }
    push_range(&mut out, next, Vec::new());
    out
}

fn push_range<'a>(out: &mut Vec<Range<'a>>, first: u32, answer: Vec<&'a Rule>) {
    let plain = |answer: &[&Rule]| match answer {
        [] => Some(None),
        [rule] if rule.conditions.is_empty() => Some(Some(rule.action)),
        _ => None,
    };
    match out.last_mut() {
        Some(last) if last.first == first => last.answer = answer,
        Some(last) if plain(&last.answer).is_some() && plain(&last.answer) == plain(&answer) => {}
        _ => out.push(Range { first, answer }),
    }
}

fn search(asm: &mut Assembler, ranges: &[Range<'_>], default: Action) {
    match ranges {
        [] => asm.push(RET, default),
        [range] => {
            for rule in &range.answer {
                let next = asm.label();
                for condition in &rule.conditions {
                    compare(asm, *condition, next);
                }
                asm.push(RET, rule.action);
                asm.bind(next);
            }
            asm.push(RET, default);
        }
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let upper = asm.label();
            asm.branch(JGE, high[0].first, true, upper);
            search(asm, low, default);
            asm.bind(upper);
            search(asm, high, default);
        }
    }
}

/// Falls through when the condition holds, else goes to `fail`. Arguments are 64 bits, the machine has 32.
fn compare(asm: &mut Assembler, condition: Condition, fail: Label) {
    let low_at = ARGS + 8 * u32::from(condition.index);
    let high_at = low_at + 4;
    let low = (condition.value & 0xffff_ffff) as u32;
    let high = (condition.value >> 32) as u32;
    let hold = asm.label();
    match condition.op {
        Op::Eq => {
            asm.push(LD_ABS, high_at);
            asm.branch(JEQ, high, false, fail);
            asm.push(LD_ABS, low_at);
            asm.branch(JEQ, low, false, fail);
        }
        Op::MaskedEq(mask) => {
            asm.push(LD_ABS, high_at);
            asm.push(ALU_AND, (mask >> 32) as u32);
            asm.branch(JEQ, high, false, fail);
            asm.push(LD_ABS, low_at);
            asm.push(ALU_AND, (mask & 0xffff_ffff) as u32);
            asm.branch(JEQ, low, false, fail);
        }
        Op::Ne => {
            asm.push(LD_ABS, high_at);
            asm.branch(JEQ, high, false, hold);
            asm.push(LD_ABS, low_at);
            asm.branch(JEQ, low, true, fail);
        }
        // Greater in the high word decides; equal leaves it to the low word.
        Op::Gt | Op::Ge => {
            asm.push(LD_ABS, high_at);
            asm.branch(JGT, high, true, hold);
            asm.branch(JEQ, high, false, fail);
            asm.push(LD_ABS, low_at);
            asm.branch(if condition.op == Op::Gt { JGT } else { JGE }, low, false, fail);
        }
        Op::Lt | Op::Le => {
            asm.push(LD_ABS, high_at);
            asm.branch(JGT, high, true, fail);
            asm.branch(JEQ, high, false, hold);
            asm.push(LD_ABS, low_at);
            asm.branch(if condition.op == Op::Lt { JGE } else { JGT }, low, true, fail);
        }
    }
    asm.bind(hold);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

#[derive(Default)]
struct Assembler {
    code: Vec<(u16, u8, u8, u32)>,
    /// Where each label is.
    labels: Vec<usize>,
    /// Jumps whose `k` is still to be filled in.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn push(&mut self, code: u16, k: u32) {
        self.code.push((code, 0, 0, k));
    }

    fn label(&mut self) -> Label {
        self.labels.push(usize::MAX);
        Label(self.labels.len() - 1)
    }

    fn bind(&mut self, label: Label) {
        self.labels[label.0] = self.code.len();
    }

    /// Goes to `label` if the test's result is `when`, else falls through.
    fn branch(&mut self, test: u16, k: u32, when: bool, label: Label) {
        let (jt, jf) = if when { (0, 1) } else { (1, 0) };
        self.code.push((test, jt, jf, k));
        self.jumps.push((self.code.len(), label));
        self.code.push((JA, 0, 0, 0));
    }

    fn finish(mut self) -> Result<Vec<u64>, ProfileError> {
        if self.code.len() > MAX_LEN {
            return Err(ProfileError::TooLong(self.code.len()));
        }
        for (at, label) in self.jumps {
            let distance = self.labels[label.0].saturating_sub(at + 1);
            self.code[at].3 = u32::try_from(distance).or(Err(ProfileError::TooLong(distance)))?;
        }
        let word = |(code, jt, jf, k): (u16, u8, u8, u32)| {
            u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
        };
        Ok(self.code.into_iter().map(word).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::interpreter::run;
    use super::super::{Environment, Profile, RUNTIME_DEFAULT};
    use super::*;
    use proptest::prelude::*;

    fn holds(condition: &Condition, args: [u64; 6]) -> bool {
        let arg = args[usize::from(condition.index)];
        match condition.op {
            Op::Ne => arg != condition.value,
            Op::Lt => arg < condition.value,
            Op::Le => arg <= condition.value,
            Op::Eq => arg == condition.value,
            Op::Ge => arg >= condition.value,
            Op::Gt => arg > condition.value,
            Op::MaskedEq(mask) => arg & mask == condition.value,
        }
    }

    /// What the rules say, without BPF.
    fn meaning(rules: &Rules, table: Table, nr: u32, args: [u64; 6]) -> Action {
        let Some((name, _)) = table.iter().find(|(_, n)| *n == nr) else { return rules.default };
        rules
            .rules
            .iter()
            .find(|r| r.name == *name && r.conditions.iter().all(|c| holds(c, args)))
            .map_or(rules.default, |r| r.action)
    }

    #[test]
    fn default_profile_answers_every_call_as_its_rules_do() {
        let caps = ["CAP_CHOWN".to_string(), "CAP_SYS_CHROOT".to_string()];
        let env = Environment { caps: &caps, arch: "amd64", kernel: (6, 18) };
        let rules = Profile::parse(RUNTIME_DEFAULT).unwrap().evaluate(&env).unwrap();
        let program = compile(&rules, Target::X86_64).unwrap();
        assert!(program.len() < 1500, "{}", program.len());
        for args in [[0; 6], [8; 6], [0xffff_ffff; 6], [38; 6], [39; 6], [40; 6], [41; 6], [0x7e02_0000; 6]] {
            for nr in 0..600 {
                for (arch, table) in [(AUDIT_ARCH_X86_64, syscalls::X86_64), (AUDIT_ARCH_I386, syscalls::X86)]
                {
                    assert_eq!(
                        run(&program, arch, nr, args),
                        meaning(&rules, table, nr, args),
                        "{arch:x} {nr}"
                    );
                }
            }
        }
        assert_eq!(run(&program, AUDIT_ARCH_X86_64, 0x4000_0000, [0; 6]), rules.default);
        assert_eq!(run(&program, AUDIT_ARCH_AARCH64, 63, [0; 6]), rules.default);
    }

    fn condition() -> impl Strategy<Value = Condition> {
        let value = prop_oneof![0u64..4, Just(u64::MAX), Just(1 << 32), any::<u64>()];
        let op = prop_oneof![
            Just(Op::Ne),
            Just(Op::Lt),
            Just(Op::Le),
            Just(Op::Eq),
            Just(Op::Ge),
            Just(Op::Gt),
            any::<u64>().prop_map(Op::MaskedEq),
        ];
        (0u8..6, op, value).prop_map(|(index, op, value)| Condition { index, op, value })
    }

    proptest! {
        #[test]
        fn any_rules_mean_the_same_in_bpf(
            rules in proptest::collection::vec(
                (0usize..8, proptest::collection::vec(condition(), 0..3), 0u32..4), 0..20),
            nr in 0u32..8,
            args in proptest::array::uniform6(prop_oneof![0u64..4, any::<u64>(), Just(1 << 32), Just(u64::MAX)]),
        ) {
            let names: Vec<&str> = (0..8).map(|n| syscalls::X86_64.iter().find(|(_, x)| *x == n).unwrap().0).collect();
            let rules = Rules {
                default: 99,
                rules: rules.into_iter().map(|(n, conditions, action)| {
                    Rule { name: names[n].to_string(), conditions, action }
                }).collect(),
                compat32: false,
            };
            let program = compile(&rules, Target::X86_64).unwrap();
            prop_assert_eq!(
                run(&program, AUDIT_ARCH_X86_64, nr, args),
                meaning(&rules, syscalls::X86_64, nr, args)
            );
        }
    }
}
