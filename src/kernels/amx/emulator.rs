//! An emulator of AMX for processors without it: a handler of SIGILL, which its instructions raise there,
//! executes them. So the kernels can be tested on any x86-64 processor, though not measured.
//!
//! Source of encodings and operations: Intel's "Software Developer's Manual", volume 2, TDPBSSD,
//! TDPBF16PS and the TILE instructions.

use std::cell::RefCell;
use std::sync::Once;

use half::bf16;

/// A tile register; a configuration may use fewer and shorter rows.
type TileRegister = [[u8; 64]; 16];

/// The tile registers of a thread, and their configuration.
#[derive(Clone, Copy)]
struct TileState {
    row_bytes: [usize; 8],
    n_rows: [usize; 8],
    tiles: [TileRegister; 8],
}

const RELEASED: TileState = TileState { row_bytes: [0; 8], n_rows: [0; 8], tiles: [[[0; 64]; 16]; 8] };

thread_local! {
    static STATE: RefCell<TileState> = const { RefCell::new(RELEASED) };
}

/// Emulates AMX instructions of this process from now on.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::ucontext_t) = handle;
        // SAFETY: all zeros is a valid action, without flags and with an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        let refused = unsafe { libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) };
        assert_eq!(refused, 0);
    });
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the system passes the context of the faulting instruction, whose bytes the processor has fetched.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        let start = registers[libc::REG_RIP as usize] as *const u8;
        let instruction = Instruction::decode(start, registers);
        let done = STATE.with_borrow_mut(|state| instruction.run(state));
        if done.is_none() {
            // Not an AMX instruction: let it end the process.
            libc::signal(libc::SIGILL, libc::SIG_DFL);
            return;
        }
        registers[libc::REG_RIP as usize] += instruction.len;
    }
}

/// An instruction with a three-byte VEX prefix.
struct Instruction {
    is_vex: bool,
    opcode: u8,
    /// The mandatory prefix, encoded: 0 none, 1 66, 2 F3, 3 F2.
    prefix: u8,
    /// The tile registers in the fields `reg`, `rm` and `vvvv`.
    reg: usize,
    rm: usize,
    third: usize,
    is_register: bool,
    /// The memory operand: its address, and the bytes from row to row.
    address: usize,
    stride: usize,
    len: i64,
}

impl Instruction {
    /// Decodes the instruction at `start`.
    ///
    /// # Safety
    /// The processor has fetched an instruction there.
    unsafe fn decode(start: *const u8, registers: &[i64; 23]) -> Self {
        // SAFETY: an instruction is at `start`, as this function requires, and no more bytes are read than an
        // instruction with this prefix has.
        unsafe {
            let byte = |idx: usize| start.add(idx).read();
            let is_vex = byte(0) == 0xC4 && byte(1) & 0b11111 == 2;
            let mut decoded = Self {
                is_vex,
                opcode: 0,
                prefix: 0,
                reg: 0,
                rm: 0,
                third: 0,
                is_register: false,
                address: 0,
                stride: 0,
                len: 0,
            };
            if !is_vex {
                return decoded;
            }
            let (extension, second, model) = (!byte(1), byte(2), byte(4));
            decoded.opcode = byte(3);
            decoded.prefix = second & 0b11;
            decoded.third = usize::from(!second >> 3 & 0b1111);
            decoded.reg = usize::from(model >> 3 & 0b111);
            decoded.rm = usize::from(model & 0b111);
            decoded.is_register = model >> 6 == 0b11;
            decoded.len = 5;
            if decoded.is_register {
                return decoded;
            }
            let register =
                |low: u8, high: u8| registers[REGISTER_INDICES[usize::from(low | high << 3)]] as usize;
            let base_high = extension >> 5 & 1;
            let mut base = model & 0b111;
            if base == 0b100 {
                let sib = byte(5);
                decoded.len += 1;
                base = sib & 0b111;
                let (index, index_high) = (sib >> 3 & 0b111, extension >> 6 & 1);
                if index | index_high << 3 != 0b100 {
                    decoded.stride = register(index, index_high) << (sib >> 6);
                }
            }
            decoded.address = register(base, base_high);
            let at = start.add(decoded.len as usize);
            let (displacement, len) = match model >> 6 {
                0b01 => (at.cast::<i8>().read().into(), 1),
                0b10 => (at.cast::<i32>().read_unaligned() as isize, 4),
                _ => (0, 0),
            };
            decoded.address = decoded.address.wrapping_add_signed(displacement);
            decoded.len += len;
            decoded
        }
    }

    /// Executes the instruction; returns `None` if it is not an AMX instruction.
    ///
    /// # Safety
    /// Its memory operand is valid, as for the instruction itself.
    unsafe fn run(&self, state: &mut TileState) -> Option<()> {
        const NONE: u8 = 0;
        const F3: u8 = 2;
        const F2: u8 = 3;
        match (self.is_vex, self.opcode, self.prefix, self.is_register) {
            (true, 0x49, NONE, true) => *state = RELEASED,
            (true, 0x49, NONE, false) => {
                *state = RELEASED;
                let shapes = self.address as *const u8;
                for tile in 0..8 {
                    // SAFETY: `ldtilecfg` reads 64 bytes, and its operand is valid, as this function requires.
                    unsafe {
                        let row_bytes = shapes.add(16 + 2 * tile).cast::<u16>().read_unaligned();
                        state.row_bytes[tile] = usize::from(row_bytes);
                        state.n_rows[tile] = usize::from(shapes.add(48 + tile).read());
                    }
                }
                assert!(state.n_rows.iter().all(|&n| n <= 16) && state.row_bytes.iter().all(|&n| n <= 64));
            }
            (true, 0x49, F2, true) => state.tiles[self.reg] = [[0; 64]; 16],
            (true, 0x4B, F2 | F3, false) => {
                for row in 0..state.n_rows[self.reg] {
                    let memory = (self.address + row * self.stride) as *mut u8;
                    let (tile, n) = (&mut state.tiles[self.reg][row], state.row_bytes[self.reg]);
                    // SAFETY: the rows of the operand are valid, as this function requires.
                    unsafe {
                        if self.prefix == F2 {
                            *tile = [0; 64];
                            memory.copy_to_nonoverlapping(tile.as_mut_ptr(), n);
                        } else {
                            memory.copy_from_nonoverlapping(tile.as_ptr(), n);
                        }
                    }
                }
            }
            (true, 0x5E, F2, true) => {
                let (a, b) = (&state.tiles[self.rm], &state.tiles[self.third]);
                let n_quads = state.row_bytes[self.rm] / 4;
                assert!(
                    n_quads == state.n_rows[self.third] && state.n_rows[self.reg] == state.n_rows[self.rm]
                );
                let mut sums = state.tiles[self.reg];
                for (sums, a) in sums.iter_mut().zip(a).take(state.n_rows[self.reg]) {
                    for (column, sum) in sums.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        let product = |i: usize| {
                            let (a, b) = (a[i].cast_signed(), b[i / 4][4 * column + i % 4].cast_signed());
                            i32::from(a) * i32::from(b)
                        };
                        let added: i32 = (0..4 * n_quads).map(product).sum();
                        *sum = i32::from_le_bytes(*sum).wrapping_add(added).to_le_bytes();
                    }
                }
                state.tiles[self.reg] = sums;
            }
            (true, 0x5C, F3, true) => {
                let (a, b) = (&state.tiles[self.rm], &state.tiles[self.third]);
                let n_pairs = state.row_bytes[self.rm] / 4;
                assert!(
                    n_pairs == state.n_rows[self.third] && state.n_rows[self.reg] == state.n_rows[self.rm]
                );
                let number = |bytes: &[u8]| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                let mut sums = state.tiles[self.reg];
                for (sums, a) in sums.iter_mut().zip(a).take(state.n_rows[self.reg]) {
                    for (column, sum) in sums.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        let product =
                            |i: usize| number(&a[2 * i..]) * number(&b[i / 2][4 * column + 2 * (i % 2)..]);
                        let added: f32 = (0..2 * n_pairs).map(product).sum();
                        *sum = (f32::from_le_bytes(*sum) + added).to_le_bytes();
                    }
                }
                state.tiles[self.reg] = sums;
            }
            _ => return None,
        }
        Some(())
    }
}

/// Indices of the general-purpose registers in the context, in the order of their encoding.
const REGISTER_INDICES: [usize; 16] = [
    libc::REG_RAX as usize,
    libc::REG_RCX as usize,
    libc::REG_RDX as usize,
    libc::REG_RBX as usize,
    libc::REG_RSP as usize,
    libc::REG_RBP as usize,
    libc::REG_RSI as usize,
    libc::REG_RDI as usize,
    libc::REG_R8 as usize,
    libc::REG_R9 as usize,
    libc::REG_R10 as usize,
    libc::REG_R11 as usize,
    libc::REG_R12 as usize,
    libc::REG_R13 as usize,
    libc::REG_R14 as usize,
    libc::REG_R15 as usize,
];
