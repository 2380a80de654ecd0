//! Values that live in vector registers only: all sixteen ymm, MXCSR and the x87 control word.
#![allow(unsafe_code)] // inline assembly

use std::arch::asm;

/// 64-bit lanes of a ymm register.
const LANES: usize = 4;
/// Registers that hold values; the sixteenth holds what is added to them.
const HOLDING: usize = 15;
/// Round towards zero, all exceptions masked: not what a thread starts with.
const MXCSR: u32 = 0x7f80;
/// Double precision, round up, all exceptions masked: not what a thread starts with.
const X87_CONTROL: u16 = 0x0a7f;

/// Contents of the registers between two rounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    ymm: [[u64; LANES]; HOLDING + 1],
    mxcsr: u32,
    x87_control: u16,
}

/// Whether this CPU and kernel let a process use them.
pub fn is_there() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}

impl Registers {
    /// Values that differ in every lane, and between the holders of different seeds: whole numbers as
    /// doubles, far below where adding a step becomes inexact.
    pub fn new(seed: u64) -> Self {
        let mut value = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut ymm = [[0; LANES]; HOLDING + 1];
        for (register, lanes) in ymm.iter_mut().enumerate() {
            let dropped = if register == HOLDING { 54 } else { 16 };
            for lane in lanes {
                // xorshift64: never zero, every bit changes.
                value ^= value << 13;
                value ^= value >> 7;
                value ^= value << 17;
                *lane = (((value >> dropped) + 1) as f64).to_bits();
            }
        }
        Self {
            ymm,
            mxcsr: MXCSR,
            x87_control: X87_CONTROL,
        }
    }

    /// What `rounds` rounds of adding must make of the values.
    fn expected_after(&self, rounds: u64) -> Self {
        let mut expected = self.clone();
        let step = self.ymm[HOLDING];
        for register in &mut expected.ymm[..HOLDING] {
            for (lane, step) in register.iter_mut().zip(step) {
                let (before, step) = (f64::from_bits(*lane), f64::from_bits(step));
                *lane = (before + step * rounds as f64).to_bits();
            }
        }
        expected
    }

    /// Loads the registers, adds in them for that many rounds without touching memory, and compares.
    ///
    /// # Errors
    /// With the first register that holds what it should not.
    pub fn hold(&mut self, rounds: u64) -> Result<(), String> {
        let expected = self.expected_after(rounds);
        self.spin(rounds);
        if *self == expected {
            return Ok(());
        }
        for (register, (found, wanted)) in self.ymm.iter().zip(&expected.ymm).enumerate() {
            if found != wanted {
                return Err(format!("ymm{register} holds {found:x?}, not {wanted:x?}"));
            }
        }
        Err(format!(
            "MXCSR is {:#x}, not {MXCSR:#x}, or the x87 control word {:#x}, not {X87_CONTROL:#x}",
            self.mxcsr, self.x87_control
        ))
    }

    fn spin(&mut self, rounds: u64) {
        if rounds == 0 {
            return;
        }
        let (mut usual_mxcsr, mut usual_x87) = (0_u32, 0_u16);
        // SAFETY: AVX was asked for by the caller of `hold`; memory is touched only at the four
        // places named, each as large as what is loaded and stored there; both control words are as
        // before when the block ends, and everything else it changes is declared.
        unsafe {
            asm!(
                "stmxcsr [{usual_mxcsr}]",
                "fnstcw [{usual_x87}]",
                "ldmxcsr [{mxcsr}]",
                "fldcw [{x87}]",
                "vmovups ymm0, [{ymm}]",
                "vmovups ymm1, [{ymm} + 32]",
                "vmovups ymm2, [{ymm} + 64]",
                "vmovups ymm3, [{ymm} + 96]",
                "vmovups ymm4, [{ymm} + 128]",
                "vmovups ymm5, [{ymm} + 160]",
                "vmovups ymm6, [{ymm} + 192]",
                "vmovups ymm7, [{ymm} + 224]",
                "vmovups ymm8, [{ymm} + 256]",
                "vmovups ymm9, [{ymm} + 288]",
                "vmovups ymm10, [{ymm} + 320]",
                "vmovups ymm11, [{ymm} + 352]",
                "vmovups ymm12, [{ymm} + 384]",
                "vmovups ymm13, [{ymm} + 416]",
                "vmovups ymm14, [{ymm} + 448]",
                "vmovups ymm15, [{ymm} + 480]",
                "2:",
                "vaddpd ymm0, ymm0, ymm15",
                "vaddpd ymm1, ymm1, ymm15",
                "vaddpd ymm2, ymm2, ymm15",
                "vaddpd ymm3, ymm3, ymm15",
                "vaddpd ymm4, ymm4, ymm15",
                "vaddpd ymm5, ymm5, ymm15",
                "vaddpd ymm6, ymm6, ymm15",
                "vaddpd ymm7, ymm7, ymm15",
                "vaddpd ymm8, ymm8, ymm15",
                "vaddpd ymm9, ymm9, ymm15",
                "vaddpd ymm10, ymm10, ymm15",
                "vaddpd ymm11, ymm11, ymm15",
                "vaddpd ymm12, ymm12, ymm15",
                "vaddpd ymm13, ymm13, ymm15",
                "vaddpd ymm14, ymm14, ymm15",
                "dec {rounds}",
                "jnz 2b",
                "vmovups [{ymm}], ymm0",
                "vmovups [{ymm} + 32], ymm1",
                "vmovups [{ymm} + 64], ymm2",
                "vmovups [{ymm} + 96], ymm3",
                "vmovups [{ymm} + 128], ymm4",
                "vmovups [{ymm} + 160], ymm5",
                "vmovups [{ymm} + 192], ymm6",
                "vmovups [{ymm} + 224], ymm7",
                "vmovups [{ymm} + 256], ymm8",
                "vmovups [{ymm} + 288], ymm9",
                "vmovups [{ymm} + 320], ymm10",
                "vmovups [{ymm} + 352], ymm11",
                "vmovups [{ymm} + 384], ymm12",
                "vmovups [{ymm} + 416], ymm13",
                "vmovups [{ymm} + 448], ymm14",
                "vmovups [{ymm} + 480], ymm15",
                "stmxcsr [{mxcsr}]",
                "fnstcw [{x87}]",
                "ldmxcsr [{usual_mxcsr}]",
                "fldcw [{usual_x87}]",
                "vzeroupper",
                rounds = inout(reg) rounds => _,
                ymm = in(reg) self.ymm.as_mut_ptr(),
                mxcsr = in(reg) &raw mut self.mxcsr,
                x87 = in(reg) &raw mut self.x87_control,
                usual_mxcsr = in(reg) &raw mut usual_mxcsr,
                usual_x87 = in(reg) &raw mut usual_x87,
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
                out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                options(nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undisturbed_registers_hold_what_was_computed_for_them() {
        if !is_there() {
            ::tests::skip!("this CPU has no AVX");
        }
        let mut registers = Registers::new(1);
        for rounds in [0, 1, 2, 1000] {
            registers.hold(rounds).unwrap();
        }
        assert_ne!(Registers::new(1), Registers::new(2));
    }

    #[test]
    fn one_changed_lane_and_control_word_are_found() {
        let expected = Registers::new(1).expected_after(10);
        let mut other = expected.clone();
        other.ymm[14][3] ^= 1;
        assert_ne!(other, expected);
        let mut other = expected.clone();
        other.mxcsr = 0x1f80;
        assert_ne!(other, expected);
        let mut step = Registers::new(1);
        step.ymm[15][0] ^= 1;
        assert_ne!(step.expected_after(10), expected);
    }
}
