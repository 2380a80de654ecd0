# A stock kernel whose page cache holds its disk moves while it does next to nothing: what is sent beyond what its
# memory holds was sent twice. What the test looks at later is the line `cache: NAME JSON`, the report of the move.

cached=$work/cached.img

# times_read HOST COUNT: whether the guest has read its disk so often on a host, and always right.
times_read() {
    serial "$1" | sed -n 's/.*guest: read [0-9]* \([0-9a-f]\{32\}\).*/\1/p' >$work/sums
    ! grep -qv "^$sum\$" $work/sums || fail "$name: the guest read $(cat $work/sums), and $sum is right"
    [ "$(wc -l <$work/sums)" -ge "$2" ]
}

# cache NAME: the name is that of the kernel.
cache() {
    name=$1
    from=$work/host-cache-a
    to=$work/host-cache-b
    began=$(cut -d. -f1 /proc/uptime)
    dd if=/dev/urandom of=$cached bs=1M count="$CACHED_MIB" 2>/dev/null || fail "$name: dd"
    sum=$(md5sum <$cached)
    sum=${sum%% *}
    on $from run guest --kernel "$name.vmlinuz" --initrd "$name.cpio" --cmdline "$CMDLINE rdinit=/cache-init" --memory 384MiB \
        --disk $cached,readonly --detach || fail "$name: vmm run: $(cat $output.errors)"
    eventually "the guest to read its disk twice" times_read $from 2
    hand_over $from $to
    echo "cache: $name $report"
    tell $to "read it again"
    eventually "the guest to read its disk where it is now" times_read $to 1
    on $to stop guest --force || fail "$name: vmm stop: $(cat $output.errors)"
    told_all
    rm -f $cached $work/socket
    say "cache $name: $(($(cut -d. -f1 /proc/uptime) - began)) s"
}
