//! From bytes to one of the AMX instructions, and from its operands to an address.

/// Index into `gregs` of rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 .. r15: the encoding's order.
const REGISTERS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// base + index * scale + displacement; a row's stride is index * scale.
#[derive(Debug, PartialEq)]
pub struct Address {
    base: u8,
    index: Option<u8>,
    scale: i64,
    displacement: i64,
}

impl Address {
    /// (address of row 0, stride).
    pub fn resolve(&self, registers: &[i64; 23]) -> (i64, i64) {
        let value = |register: u8| registers[REGISTERS[register as usize] as usize];
        let stride = self.index.map_or(0, |index| value(index).wrapping_mul(self.scale));
        (value(self.base).wrapping_add(self.displacement), stride)
    }
}

#[derive(Debug, PartialEq)]
pub enum Instruction {
    LoadConfig(Address),
    Release,
    Zero(usize),
    Load(usize, Address),
    Store(Address, usize),
    /// Products of bf16.
    Dot {
        sum: usize,
        a: usize,
        b: usize,
    },
    /// Products of bytes with signs.
    DotBytes {
        sum: usize,
        a: usize,
        b: usize,
    },
}

/// The fields of a three-byte VEX prefix and the bytes behind it.
struct Vex {
    extend_base: bool,
    extend_index: bool,
    register: usize,
    prefix: u8,
    opcode: u8,
    modrm: u8,
}

/// The instruction at byte 0 and its length; `None` if it is none of these.
pub fn decode(byte: impl Fn(usize) -> u8) -> Option<(Instruction, usize)> {
    let vex = vex(&byte)?;
    let (mode, reg, rm) = (vex.modrm >> 6, (vex.modrm >> 3 & 7) as usize, (vex.modrm & 7) as usize);
    let memory = || address(&vex, &byte);
    Some(match (vex.prefix, vex.opcode, mode) {
        (0, 0x49, 3) if vex.modrm == 0xc0 => (Instruction::Release, 5),
        (0, 0x49, 0..3) if reg == 0 => memory().map(|(address, len)| (Instruction::LoadConfig(address), len))?,
        (3, 0x49, 3) if rm == 0 => (Instruction::Zero(reg), 5),
        (3, 0x4b, 0..3) => memory().map(|(address, len)| (Instruction::Load(reg, address), len))?,
        (2, 0x4b, 0..3) => memory().map(|(address, len)| (Instruction::Store(address, reg), len))?,
        (2, 0x5c, 3) => (Instruction::Dot { sum: reg, a: rm, b: vex.register }, 5),
        (3, 0x5e, 3) => (Instruction::DotBytes { sum: reg, a: rm, b: vex.register }, 5),
        _ => return None,
    })
}

/// VEX.128.0F38.W0; R, X, B and the register are stored inverted.
fn vex(byte: &impl Fn(usize) -> u8) -> Option<Vex> {
    if byte(0) != 0xc4 || byte(1) & 0x9f != 0x82 || byte(2) & 0x84 != 0 {
        return None;
    }
    let register = (!(byte(2) >> 3) & 15) as usize;
    let vex = Vex {
        extend_base: byte(1) & 0x20 == 0,
        extend_index: byte(1) & 0x40 == 0,
        register,
        prefix: byte(2) & 3,
        opcode: byte(3),
        modrm: byte(4),
    };
    (register < 8 || !matches!(vex.opcode, 0x5c | 0x5e)).then_some(vex)
}

/// The memory operand and the instruction's length; relative to the instruction pointer or without a base: `None`.
fn address(vex: &Vex, byte: &impl Fn(usize) -> u8) -> Option<(Address, usize)> {
    let (mode, rm) = (vex.modrm >> 6, vex.modrm & 7);
    let sib = (rm == 4).then(|| byte(5));
    let base = sib.map_or(rm, |sib| sib & 7);
    if mode == 0 && base == 5 {
        return None;
    }
    let index = sib.map(|sib| sib >> 3 & 7 | (vex.extend_index as u8) << 3).filter(|index| *index != 4);
    let scale = sib.map_or(0, |sib| 1 << (sib >> 6));
    let at = 5 + sib.is_some() as usize;
    let (displacement, len) = match mode {
        0 => (0, 0),
        1 => (byte(at) as i8 as i64, 1),
        _ => (i32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]) as i64, 4),
    };
    let base = base | (vex.extend_base as u8) << 3;
    Some((Address { base, index, scale, displacement }, at + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Option<(Instruction, usize)> {
        decode(|i| bytes[i])
    }

    fn address(base: u8, index: Option<u8>, scale: i64, displacement: i64) -> Address {
        Address { base, index, scale, displacement }
    }

    /// Bytes as an assembler gives them.
    #[test]
    fn every_instruction_is_recognised() {
        let cases: [(&[u8], Instruction); 7] = [
            (&[0xc4, 0xe2, 0x78, 0x49, 0x00], Instruction::LoadConfig(address(0, None, 0, 0))),
            (&[0xc4, 0xe2, 0x78, 0x49, 0xc0], Instruction::Release),
            (&[0xc4, 0xe2, 0x7b, 0x49, 0xd8], Instruction::Zero(3)),
            (&[0xc4, 0xa2, 0x7b, 0x4b, 0x64, 0x13, 0x40], Instruction::Load(4, address(3, Some(10), 1, 64))),
            (&[0xc4, 0xc2, 0x7a, 0x4b, 0x8c, 0xb1, 0, 8, 0, 0], Instruction::Store(address(9, Some(6), 4, 2048), 1)),
            (&[0xc4, 0xe2, 0x42, 0x5c, 0xcc], Instruction::Dot { sum: 1, a: 4, b: 7 }),
            (&[0xc4, 0xe2, 0x43, 0x5e, 0xcc], Instruction::DotBytes { sum: 1, a: 4, b: 7 }),
        ];
        for (bytes, want) in cases {
            assert_eq!(decoded(bytes), Some((want, bytes.len())));
        }
    }

    #[test]
    fn other_instructions_are_left_alone() {
        let vmovaps = [0xc5, 0xf8, 0x28, 0xc1, 0x90];
        let ud2 = [0x0f, 0x0b, 0x90, 0x90, 0x90];
        let tdpbusd = [0xc4, 0xe2, 0x41, 0x5e, 0xcc];
        let relative = [0xc4, 0xe2, 0x78, 0x49, 0x05];
        for bytes in [vmovaps, ud2, tdpbusd, relative] {
            assert_eq!(decoded(&bytes), None);
        }
    }

    #[test]
    fn an_address_is_base_plus_displacement_and_its_stride_the_index() {
        let mut registers = [0; 23];
        registers[libc::REG_R9 as usize] = 1000;
        registers[libc::REG_RSI as usize] = 30;
        assert_eq!(address(9, Some(6), 4, -8).resolve(&registers), (992, 120));
    }
}
