# What the scenarios and resets of run.sh share.

work=/mnt
# Emulation twice over is slow; these limits only end what hangs.
long=300

say() { echo "scenario: $*"; }

fail() {
    say "FAILED: $*"
    # Why a VM failed is in its status; asked first, because its process may be about to end.
    for host in $work/host-*; do
        say "$host: $(VMM_RUNTIME_DIR=$host timeout 10 vmm status guest --json 2>&1)"
    done
    show_logs
    dmesg | tail -n 30
    exit 1
}

show_logs() {
    find $work/host-* $work/output -type f 2>/dev/null | while read -r file; do
        echo "--- $file"
        tail -n 40 "$file"
    done
}

# on HOST ARGS...: a vmm command on a host; its output goes to $work/output/N.
on() {
    host=$1
    shift
    commands=$((${commands:-0} + 1))
    output=$work/output/$commands
    mkdir -p "$host" $work/output
    echo "vmm $* on $host" >$output.command
    VMM_RUNTIME_DIR=$host timeout $long vmm "$@" >$output 2>$output.errors
}

# eventually WHAT COMMAND...: tries the command until it succeeds.
eventually() {
    what=$1
    shift
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -le $((long * 2)) ] || fail "waited too long for $what"
        sleep 0.5
    done
}

# hand_over FROM TO OPTIONS...: live migration of the guest to a host that receives with the options, with those of
# $moving at the source; $report tells of it.
moving=
hand_over() {
    leaves=$1
    comes=$2
    shift 2
    on "$comes" receive --listen "unix:$work/socket" --name guest "$@" --detach || fail "vmm receive: $(cat $output.errors)"
    # shellcheck disable=SC2086 # a list of options
    on "$leaves" migrate guest --to "unix:$work/socket" --downtime-limit 20s --timeout 200s --on-timeout stop $moving --json ||
        fail "vmm migrate ended with $?: $(cat $output $output.errors)"
    report=$(tail -n 1 $output)
}

serial() { cat "$1/guest/serial.log" 2>/dev/null; }

# tell HOST LINE: types it at the guest's console, which is then held until the VM ends.
tell() {
    echo "$2" | VMM_RUNTIME_DIR=$1 timeout $long vmm console guest >$work/output/console 2>&1 &
    console=$!
}

# After the VM that was told something has ended.
told_all() { wait $console || fail "$name: vmm console ended with $?: $(cat $work/output/console)"; }

# has_ended HOST: whether the guest's VM has, or there is none; its last status tells how it ended.
has_ended() { ! on "$1" status guest --json || grep -q '"end":{' "$output"; }
