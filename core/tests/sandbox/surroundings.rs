//! /proc, /sys, /dev, the network and the host name.

use bareboat_core::execute::sandbox::StepNetwork;

use super::bench::*;

pub fn proc_is_masked_and_sys_read_only() {
    let says = step(
        "head -c 1 /proc/kcore | wc -c; head -c 1 /proc/keys | wc -c; (echo x > /proc/sysrq-trigger) 2>/dev/null || echo refused
         (echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo refused; mkdir /sys/x 2>/dev/null || echo ro
         ls /sys/firmware | wc -l; ls /proc/scsi 2>/dev/null | wc -l; ls -d /proc/[0-9]* | wc -l",
    )
    .says();
    let lines: Vec<_> = says.lines().collect();
    assert_eq!(lines[..7], ["0", "0", "refused", "refused", "ro", "0", "0"]);
    // The shell, ls and wc: nobody else's processes.
    assert!(lines[7].parse::<u32>().unwrap() <= 3);
}

pub fn devices() {
    let says = step(
        "echo x > /dev/null; head -c 5 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; head -c 3 /dev/random | wc -c
         ls -d /dev/full /dev/tty /dev/stdin /dev/fd /dev/shm /dev/pts /dev/ptmx; df -k /dev/shm | tail -1 | awk '{print $2}'
         stat -c %a /dev/shm /dev/null; echo x > /dev/made; cat /dev/fd/0 < /dev/null",
    )
    .with(|spec| spec.shm_bytes = 32 * 1024 * 1024)
    .run();
    let expected = "5\n3\n3\n/dev/fd\n/dev/full\n/dev/ptmx\n/dev/pts\n/dev/shm\n/dev/stdin\n/dev/tty\n32768\n1777\n666\n";
    assert_eq!(says.stdout, expected, "{}", says.stderr);
    assert!(says.changes().is_empty(), "{:?}", says.changes());
    let default = step("df -k /dev/shm | tail -1 | awk '{print $2}'").says();
    assert_eq!(default, "65536\n");
}

pub fn host_name_and_network_files() {
    let done = step(
        "hostname; cat /etc/resolv.conf; grep -c buildkitsandbox /etc/hosts; (echo x >> /etc/hosts) 2>/dev/null || echo ro
         rm /etc/resolv.conf 2>/dev/null || echo busy; stat -c %a /etc/hosts",
    )
    .run();
    assert_eq!(done.stdout, "buildkitsandbox\nnameserver 192.0.2.1\n1\nro\nbusy\n644\n");
    assert!(done.changes().is_empty(), "{:?}", done.changes());
    assert_eq!(step("hostname").with(|spec| spec.host_name = "other".into()).says(), "other\n");
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_ne!(own.trim(), "buildkitsandbox");
}

pub fn no_network_has_only_loopback() {
    let alone = step("grep : /proc/net/dev | awk '{print $1}'; ls /sys/class/net; ping -c 1 -W 2 127.0.0.1 > /dev/null && echo up")
        .with(|spec| spec.network = StepNetwork::None);
    assert_eq!(alone.says(), "lo:\nlo\nup\n");
    let inside = step("readlink /proc/self/ns/net").says();
    assert_eq!(Path::new(inside.trim()), fs::read_link("/proc/self/ns/net").unwrap());
}
