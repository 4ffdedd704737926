#!/usr/bin/busybox sh
# PID 1 of the guest: mounts what a host has, runs each group of the end-to-end tests and says so in lines that begin
# with @vm, on the second serial port, which the kernel does not write to.
export PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
busybox stty -F /dev/ttyS1 -opost
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t securityfs security /sys/kernel/security
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
modprobe -a fuse veth inet_diag tcp_diag udp_diag
ip link set lo up

# From the command line of the kernel.
for word in $(cat /proc/cmdline); do
    case $word in
        vm.agent=*) export CALLGATE_BIN=${word#*=} ;;
        vm.tests=*) tests=${word#*=} ;;
        vm.now=*) busybox date -s "@${word#*=}" >/dev/null ;;
    esac
done
export CALLGATE_TEST_OBJECTS=/objects CALLGATE_TEST_VERIFIED=/run/verified CALLGATE_SKIP_FILE=/run/skips
export CALLGATE_TEST_SLOWNESS=5 CALLGATE_TEST_STRICT=1 RUST_BACKTRACE=0
: >/run/skips
: >/run/verified
uptime() { cut -d ' ' -f 1 /proc/uptime; }

echo "@vm up $(uname -r) $(uptime)"
while read -r group arguments <&3; do
    echo "@vm group $group $(uptime)"
    # Words, not one argument.
    "$tests" --color never --test-threads 2 $arguments 3<&-
    code=$?
    sed 's/^/@vm skip /' /run/skips
    sed 's/^/@vm verified /' /run/verified
    : >/run/skips
    : >/run/verified
    echo "@vm done $group $code $(uptime)"
done 3</groups
"$CALLGATE_BIN" doctor | sed 's/^/@vm doctor /'
echo "@vm end $(uptime)"
busybox sync
busybox poweroff -f
