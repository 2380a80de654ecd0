# All code that runs at CPL0: entry, exceptions, and the gate. Integer instructions only, because
# kvm_pvm runs CPL0 in KVM's instruction emulator. Memory is mapped one to one and open to CPL3.

.section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                  # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

.section .tables, "aw", @progbits
    # Tables for the first 4 GiB come ready in the image: filling them at CPL0 would take 2 ms.
    .balign 4096
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
    .global pdpt
pdpt:
    .quad pds + 0x0007, pds + 0x1007, pds + 0x2007, pds + 0x3007
    .fill 508, 8, 0
pds:
    .set address, 0
    .rept 2048
    .quad address + 0x87            # present, writable, user, 2 MiB
    .set address, address + 0x200000
    .endr
    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08 CPL0 code, 64 bit
    .quad 0x00cf93000000ffff        # 0x10 CPL0 data
    .quad 0x00cff3000000ffff        # 0x18 CPL3 data
    .quad 0x00affb000000ffff        # 0x20 CPL3 code, 64 bit
    .quad 0x00cf9b000000ffff        # 0x28 CPL0 code, 32 bit
    .fill 32, 8, 0                  # 0x30 task state of each CPU
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 0x42 * 16 - 1
    .quad idt
null_idt_pointer:
    .word 0
    .quad 0
    .balign 8
    .global boot_info
boot_info: .quad 0
    .global ap_index
ap_index: .quad 0
    .global test_timer_fired
test_timer_fired: .quad 0
gate_table:
    .quad gate_out, gate_inb, gate_outb, gate_rdmsr, gate_wrmsr, gate_cpuid, gate_halt
    .quad gate_dirty, gate_triple, gate_interruptible

.section .bss, "aw", @nobits
    .balign 16
idt: .skip 0x42 * 16
tss: .skip 16 * 128
kernel_stacks: .skip 16 * 1024
    .balign 4096
user_stacks: .skip 16 * 32768
emergency_stack: .skip 8192
emergency_top:

.section .text.boot, "ax", @progbits
.code32
.global pvh_entry
pvh_entry:
    cli
    cld
    movl %ebx, boot_info
    xorl %edi, %edi
enter_long:                         # edi: CPU index
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax                # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax                # EFER.LME
    wrmsr
    movl %cr0, %eax
    andl $0x9ffffff3, %eax          # CD, NW, TS, EM off
    orl $0x80010023, %eax           # PG, WP, NE, MP, PE
    movl %eax, %cr0
    lgdtl gdt_pointer
    ljmpl $0x08, $long64

.code64
long64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl %edi, %ebx
    movl %edi, %eax
    shll $10, %eax
    leaq kernel_stacks + 1024(%rax), %rsp
    testl %edi, %edi
    jnz 1f
    call build_idt
1:  lidt idt_pointer
    # Task state: only RSP0 matters; port I/O is done behind the gate, so there is no I/O bitmap.
    movl %ebx, %eax
    shll $7, %eax
    leaq tss(%rax), %rax
    movq %rsp, 4(%rax)
    movw $0x68, 0x66(%rax)
    movl %ebx, %ecx
    shll $4, %ecx
    leaq gdt + 0x30(%rcx), %rdx
    movw $0x67, (%rdx)
    movw %ax, 2(%rdx)
    shrl $16, %eax
    movb %al, 4(%rdx)
    movb $0x89, 5(%rdx)
    movb $0, 6(%rdx)
    movb %ah, 7(%rdx)
    movq $0, 8(%rdx)
    addl $0x30, %ecx
    ltr %cx
    movl %ebx, %eax
    shll $15, %eax
    leaq user_stacks + 32768 - 8(%rax), %rax
    movl %ebx, %edi
    pushq $0x1b
    pushq %rax
    pushq $0x2                      # IF=0: interrupts are only taken inside gate_halt
    pushq $0x23
    pushq $cpu_main
    iretq

build_idt:
    leaq idt, %rdi
    leaq exceptions, %rsi
    movl $32, %ecx
1:  movl $0x8e, %edx
    call set_gate
    addq $16, %rsi
    decl %ecx
    jnz 1b
    leaq idt + 3 * 16, %rdi
    leaq gate, %rsi
    movl $0xee, %edx
    call set_gate
    leaq idt + 0x40 * 16, %rdi
    leaq timer, %rsi
    movl $0x8e, %edx
    call set_gate
    leaq test_timer, %rsi
set_gate:                           # rdi: entry (advanced), rsi: handler, dl: type
    movl %esi, %eax
    movw %ax, (%rdi)
    movw $0x08, 2(%rdi)
    movb $0, 4(%rdi)
    movb %dl, 5(%rdi)
    shrl $16, %eax
    movw %ax, 6(%rdi)
    movq $0, 8(%rdi)
    addq $16, %rdi
    ret

    .balign 16
exceptions:
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector == 8) || (vector == 10) || (vector == 11) || (vector == 12) || (vector == 13) || (vector == 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp exception
    .set vector, vector + 1
    .endr

# Reported from CPL3, on a stack of its own.
exception:
    popq %rdi
    popq %rsi
    movq (%rsp), %rdx
    movq %cr2, %rcx
    movq 8(%rsp), %r8
    pushq $0x1b
    pushq $emergency_top - 8
    pushq $0x2
    pushq $0x23
    pushq $exception_report
    iretq

timer:
    pushq %rax
    movl $0xfee000b0, %eax          # by register: a 32-bit displacement would be sign-extended
    movl $0, (%rax)                 # EOI
    popq %rax
    iretq

test_timer:                         # the timer that the guest watches; CPU 0 alone
    pushq %rax
    incq test_timer_fired
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq

# int3 from CPL3: rax selects; each function names its registers. rax returns.
gate:
    cmpl $10, %eax
    jae gate_triple
    jmpq *gate_table(,%rax,8)

gate_out:                           # rsi: bytes, ecx: count, at most 16; rax: 1 when written
    movl $0x3fd, %edx
    inb %dx, %al
    testb $0x20, %al
    jnz 1f
    xorl %eax, %eax
    iretq
1:  movl $0x3f8, %edx
2:  movb (%rsi), %al
    outb %al, %dx
    incq %rsi
    decl %ecx
    jnz 2b
    movl $1, %eax
    iretq

gate_inb:                           # edx: port
    xorl %eax, %eax
    inb %dx, %al
    iretq

gate_outb:                          # edx: port, ecx: value
    movl %ecx, %eax
    outb %al, %dx
    iretq

gate_rdmsr:                         # ecx: register
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    iretq

gate_wrmsr:                         # ecx: register, rdi: value
    movl %edi, %eax
    movq %rdi, %rdx
    shrq $32, %rdx
    wrmsr
    iretq

gate_cpuid:                         # esi: leaf, ecx: subleaf, rdi: four words for the answer
    movq %rbx, %r8
    movl %esi, %eax
    cpuid
    movl %eax, (%rdi)
    movl %ebx, 4(%rdi)
    movl %ecx, 8(%rdi)
    movl %edx, 12(%rdi)
    movq %r8, %rbx
    iretq

gate_halt:                          # edi: LAPIC timer count; armed and awaited with IF=0
    movl $0xfee00380, %eax
    movl %edi, (%rax)
    sti
    hlt
    cli
    iretq

gate_dirty:                         # rdi: {page, sequence, index, value}, ecx: how many, at most 8
1:  movq (%rdi), %r8
    movq 8(%rdi), %r9
    movq 16(%rdi), %r10
    movq 24(%rdi), %r11
    movq 16(%r8), %rax              # checksum: sum of word i * (2i + 1)
    movq %r11, %rdx
    subq (%r8,%r10,8), %rdx
    leaq 1(%r10,%r10), %rsi
    imulq %rsi, %rdx
    addq %rdx, %rax
    movq %r11, (%r8,%r10,8)
    movq %r9, %rdx
    subq (%r8), %rdx
    addq %rdx, %rax
    movq %r9, (%r8)
    movq %r9, %rdx
    subq 4088(%r8), %rdx
    imulq $1023, %rdx, %rdx
    addq %rdx, %rax
    movq %r9, 4088(%r8)
    movq %rax, 16(%r8)
    addq $32, %rdi
    decl %ecx
    jnz 1b
    iretq

gate_interruptible:                 # from here on CPL3 takes interrupts
    orl $0x200, 16(%rsp)
    iretq

gate_triple:
    lidt null_idt_pointer
    ud2

# Copied below 1 MiB for the other CPUs, which begin here in real mode.
.code16
.global ap_trampoline
ap_trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_pointer - ap_trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x28, $ap32
    .balign 4
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
.global ap_trampoline_end
ap_trampoline_end:
.code32
ap32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl ap_index, %edi
    jmp enter_long
.code64
