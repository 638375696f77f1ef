/** One instruction of classic BPF, as `struct sock_filter` has it. */
export type BpfInstruction = { readonly code: number; readonly jt: number; readonly jf: number; readonly k: number };

/** What the kernel shows to a seccomp filter (`struct seccomp_data`); the instruction pointer is left out, no filter of ours reads it. */
export type SyscallAttempt = { readonly number: number; readonly auditArchitecture: number; readonly args: readonly bigint[] };

const LOAD_WORD = 0x20;
const AND = 0x54;
const JUMP = 0x05;
const JUMP_EQUAL = 0x15;
const JUMP_GREATER_OR_EQUAL = 0x35;
const JUMP_ANY_BIT = 0x45;
const RETURN = 0x06;

/** The kernel's BPF_MAXINSNS. */
const MAX_INSTRUCTIONS = 4096;
const INSTRUCTION_BYTES = 8;

const instruction = (code: number, k: number, jt = 0, jf = 0): BpfInstruction => ({ code, jt, jf, k: k >>> 0 });

export const loadSyscallNumber = (): BpfInstruction => instruction(LOAD_WORD, 0);
export const loadArchitecture = (): BpfInstruction => instruction(LOAD_WORD, 4);
/** The low 32 bits of an argument: all that the kernel looks at for every argument that our filters judge (both machines are little-endian). */
export const loadArgument = (index: number): BpfInstruction => instruction(LOAD_WORD, 16 + 8 * index);
export const keepBits = (mask: number): BpfInstruction => instruction(AND, mask);
const jump = (distance: number): BpfInstruction => instruction(JUMP, distance);
export const ifEqual = (value: number, jt: number, jf: number): BpfInstruction => instruction(JUMP_EQUAL, value, jt, jf);
export const ifAtLeast = (value: number, jt: number, jf: number): BpfInstruction => instruction(JUMP_GREATER_OR_EQUAL, value, jt, jf);
export const ifAnyBit = (mask: number, jt: number, jf: number): BpfInstruction => instruction(JUMP_ANY_BIT, mask, jt, jf);
export const verdict = (action: number): BpfInstruction => instruction(RETURN, action);

/** `yes` when the loaded word is one of `values`, else `no`; each branch ends in a verdict. */
export function oneOf(values: readonly number[], yes: readonly BpfInstruction[], no: readonly BpfInstruction[]): BpfInstruction[] {
  return [...values.map((value, index) => ifEqual(value, values.length - 1 - index + no.length, 0)), ...no, ...yes];
}

/** Ranges of syscall numbers, each from `from` up to the next one's, as a balanced tree of comparisons over the loaded number. */
export function rangeTree(
  ranges: readonly { readonly from: number; readonly then: readonly BpfInstruction[] }[],
): readonly BpfInstruction[] {
  const [first] = ranges;
  if (!first) throw new Error("A range tree needs a range.");
  if (ranges.length === 1) return first.then;
  const middle = ranges.length >> 1;
  const left = rangeTree(ranges.slice(0, middle));
  const right = rangeTree(ranges.slice(middle));
  const pivot = ranges[middle]?.from ?? 0;
  // A conditional jump reaches 255 instructions; a longer way takes an unconditional one.
  const branch = left.length <= 255 ? [ifAtLeast(pivot, left.length, 0)] : [ifAtLeast(pivot, 0, 1), jump(left.length)];
  return [...branch, ...left, ...right];
}

/** The program as the kernel and bubblewrap's `--seccomp` read it. */
export function encodeBpf(program: readonly BpfInstruction[]): Buffer {
  if (program.length > MAX_INSTRUCTIONS)
    throw new Error(`The filter has ${program.length} instructions; the kernel takes ${MAX_INSTRUCTIONS}.`);
  const bytes = Buffer.alloc(program.length * INSTRUCTION_BYTES);
  for (const [index, { code, jt, jf, k }] of program.entries()) {
    if (jt > 255 || jf > 255) throw new Error(`Instruction ${index} jumps too far.`);
    const at = index * INSTRUCTION_BYTES;
    bytes.writeUInt16LE(code, at);
    bytes.writeUInt8(jt, at + 2);
    bytes.writeUInt8(jf, at + 3);
    bytes.writeUInt32LE(k, at + 4);
  }
  return bytes;
}

/** Runs a program as the kernel would, so that both machines' filters are judged on either. */
export function interpretBpf(program: readonly BpfInstruction[], attempt: SyscallAttempt): number {
  const data = Buffer.alloc(64);
  data.writeUInt32LE(attempt.number >>> 0, 0);
  data.writeUInt32LE(attempt.auditArchitecture >>> 0, 4);
  for (const [index, argument] of attempt.args.entries()) data.writeBigUInt64LE(BigInt.asUintN(64, argument), 16 + 8 * index);

  let accumulator = 0;
  for (let at = 0; at < program.length; at += 1) {
    const { code, jt, jf, k } = program[at] as BpfInstruction;
    if (code === RETURN) return k;
    else if (code === LOAD_WORD) accumulator = data.readUInt32LE(k);
    else if (code === AND) accumulator = (accumulator & k) >>> 0;
    else if (code === JUMP) at += k;
    else if (code === JUMP_EQUAL) at += accumulator === k ? jt : jf;
    else if (code === JUMP_GREATER_OR_EQUAL) at += accumulator >= k ? jt : jf;
    else if (code === JUMP_ANY_BIT) at += (accumulator & k) !== 0 ? jt : jf;
    else throw new Error(`Instruction ${at} has the unknown code ${code}.`);
  }
  throw new Error("The program ended without a verdict.");
}
