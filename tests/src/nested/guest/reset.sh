# A stock kernel resets its machine as soon as it is up, in one of the ways that kernels know: each ends the VM as a
# reset. With `reboot=` the kernel begins with the way that is named there, and goes on to others; `default` is
# without it, `panic` and `sysrq` do not stop the other CPUs in order before.

# how WAY: what the kernel is told on its command line; `do=` is for the guest's first process.
how() {
    case $1 in
        default) ;;
        panic) echo "panic=-1 do=c" ;;
        sysrq) echo "do=b" ;;
        *) echo "reboot=$1" ;;
    esac
}

# reset_by NAME KERNEL WAY CPUS
reset_by() {
    name=$1
    host=$work/host-reset
    began=$(cut -d. -f1 /proc/uptime)
    on $host run guest --kernel "$2.vmlinuz" --initrd reset.cpio --cmdline "console=ttyS0 quiet $(how "$3")" \
        --cpus "$4" --memory 192MiB </dev/null || fail "$name: vmm run ended with $?: $(cat $output $output.errors)"
    grep -q "guest: up, $4 CPUs" $output || fail "$name: not all CPUs were up: $(cat $output)"
    on $host status guest --json || fail "$name: nothing is left of it: $(cat $output.errors)"
    grep -q '"how":"reset"' $output || fail "$name: not told as a reset: $(cat $output)"
    say "reset $name: $(($(cut -d. -f1 /proc/uptime) - began)) s"
}
