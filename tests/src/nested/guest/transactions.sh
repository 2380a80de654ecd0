# Transactions on a file system: each erases the next block of a file, overwrites a block of a table with content of its
# own, then appends its number, the block's and the content's checksum to a log. It is committed when all are fsynced. Used
# by the guest that commits them, and by the host that reads the guest's disk.

blocks=32
block_size=16384
# Blocks of the file that is erased; it is full of random bytes at first.
to_erase=512

# commit FOLDER NUMBER
commit() {
    # Blocks are not overwritten in their order.
    block=$(($2 * 13 % blocks))
    yes "content of transaction $2" | head -c $block_size >/tmp/content
    sum=$(sha256sum </tmp/content)
    dd if=/dev/zero of="$1/erased" bs=$block_size seek=$((($2 - 1) % to_erase)) count=1 conv=notrunc,fsync 2>/dev/null &&
        dd if=/tmp/content of="$1/table" bs=$block_size seek=$block conv=notrunc,fsync 2>/dev/null &&
        echo "$2 $block ${sum%% *}" | dd of="$1/log" oflag=append conv=notrunc,fsync 2>/dev/null
}

# faults FOLDER: what is wrong, a line each: a gap in the log, or a block that is not what was last logged of it.
faults() {
    awk '$1 != NR { print "the log has \"" $0 "\" as its line " NR; exit }' "$1/log"
    awk '{ last[$2] = $0 } END { for (block in last) print last[block] }' "$1/log" | while read -r number block sum; do
        found=$(dd if="$1/table" bs=$block_size skip="$block" count=1 2>/dev/null | sha256sum)
        [ "${found%% *}" = "$sum" ] || echo "block $block is not that of transaction $number"
    done
    erased=$(wc -l <"$1/log")
    [ "$erased" -le $to_erase ] || erased=$to_erase
    left=$(head -c $((erased * block_size)) "$1/erased" | tr -d '\0' | wc -c)
    [ "$left" = 0 ] || echo "$left bytes are not erased"
    # What nobody has written since the disk was made.
    (cd "$1" && sha256sum -c cold.sum 2>&1 | grep -v ': OK$')
}
