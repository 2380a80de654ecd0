# exit-emulator CODE: ends the emulator around this kernel with a status that tells CODE (0 to 127).
#
# Writes the code to the port of QEMU's isa-debug-exit device, which makes QEMU exit with CODE*2+1. A
# program of its own because the stock kernel has no /dev/port; without a library, so that it runs in
# any initramfs.

        .set SYS_ioctl, 16
        .set SYS_nanosleep, 35
        .set SYS_iopl, 172
        .set SYS_exit, 60
        .set TCSBRK, 0x5409
        .set EXIT_PORT, 0x501

        .globl _start
_start:
        mov     16(%rsp), %rsi          # argv[1], or NULL
        xor     %ebx, %ebx
        test    %rsi, %rsi
        jz      2f
1:      movzbl  (%rsi), %eax            # ebx = decimal value of the argument
        sub     $'0', %eax
        cmp     $9, %eax
        ja      2f
        imul    $10, %ebx, %ebx
        add     %eax, %ebx
        inc     %rsi
        jmp     1b
2:      mov     $SYS_ioctl, %eax        # tcdrain: what was printed last must reach the serial port
        mov     $1, %edi
        mov     $TCSBRK, %esi
        mov     $1, %edx
        syscall
        mov     $SYS_iopl, %eax
        mov     $3, %edi
        syscall
        test    %eax, %eax
        jnz     3f                      # not root: no port access
        mov     %ebx, %eax
        mov     $EXIT_PORT, %edx
        outl    %eax, %dx
        push    $0                      # the emulator ends while this sleeps for 10 seconds
        push    $10
        mov     $SYS_nanosleep, %eax
        mov     %rsp, %rdi
        xor     %esi, %esi
        syscall
3:      mov     $SYS_exit, %eax         # reached only where the device is missing
        mov     $111, %edi
        syscall

        .section .note.GNU-stack, "", @progbits
