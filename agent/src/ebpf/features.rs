//! What this kernel must offer, probed one by one: nothing is guessed from a version.

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_program_supported};

/// Kernels that `cargo xtask vm` runs the tests on, the oldest first; `x` is any minor version. The machine that builds
/// has one more.
pub const TESTED_KERNELS: &[&str] = &["6.1", "6.12", "7.x"];

/// Where a kernel keeps its own type information.
pub const TYPE_INFO: &str = "/sys/kernel/btf/vmlinux";

macro_rules! features {
    ($($name:ident: $label:literal, $why:literal;)+) => {
        /// One thing that the kernel must have.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Feature {
            $(#[doc = $why] $name,)+
        }

        impl Feature {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name, as kernel documentation has it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            /// What callgate needs it for.
            #[must_use]
            pub const fn why(self) -> &'static str {
                match self { $(Self::$name => $why),+ }
            }
        }
    };
}

features! {
    SockCreate: "cgroup/sock_create programs", "to mark each socket with its workload and refuse raw ones";
    SockAddr: "cgroup sock_addr programs", "to turn connect() round to the agent";
    CgroupSkb: "cgroup_skb programs", "to drop packets that got past connect()";
    SockOpt: "cgroup/setsockopt programs", "to refuse socket options that lead out";
    SockOps: "sock_ops programs", "to carry the caller's facts to the accepted socket";
    AncestorId: "bpf_get_current_ancestor_cgroup_id in sock_addr programs", "to tell the caller's workload";
    SkStorage: "bpf_sk_storage_get in sock_addr programs", "to keep the mark with its socket";
    SkLookup: "bpf_sk_lookup_tcp in sock_addr programs", "to see that the agent holds its port before turning a connection to it";
    NetnsCookie: "bpf_get_netns_cookie in sock_ops programs", "to tell network namespaces apart";
    SetRetval: "bpf_set_retval in sock_addr programs", "to refuse with the right error number";
    TaskRead: "bpf_probe_read_kernel in sock_addr programs", "to read start time and executable of the caller";
    TypeInfo: "/sys/kernel/btf/vmlinux", "to find start time and executable in the kernel's structures";
}

impl Feature {
    /// What the operator can do about its absence.
    #[must_use]
    pub const fn fix(self) -> &'static str {
        match self {
            Self::TypeInfo => {
                "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (all of Debian's, Ubuntu's and Fedora's are)"
            }
            Self::SockCreate
            | Self::SockAddr
            | Self::CgroupSkb
            | Self::SockOpt
            | Self::SockOps
            | Self::AncestorId
            | Self::SkStorage
            | Self::SkLookup
            | Self::NetnsCookie
            | Self::SetRetval
            | Self::TaskRead => "use Linux 6.1 or later, with CONFIG_CGROUP_BPF=y",
        }
    }

    /// Whether this kernel has it. What can't be probed counts as missing.
    #[must_use]
    pub fn is_present(self) -> bool {
        let helper = |program, helper| is_helper_supported(program, helper).unwrap_or(false);
        match self {
            Self::SockCreate => is_program_supported(ProgramType::CgroupSock).unwrap_or(false),
            Self::SockAddr => is_program_supported(ProgramType::CgroupSockAddr).unwrap_or(false),
            Self::CgroupSkb => is_program_supported(ProgramType::CgroupSkb).unwrap_or(false),
            Self::SockOpt => is_program_supported(ProgramType::CgroupSockopt).unwrap_or(false),
            Self::SockOps => is_program_supported(ProgramType::SockOps).unwrap_or(false),
            Self::AncestorId => helper(
                ProgramType::CgroupSockAddr,
                BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
            ),
            Self::SkStorage => helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get),
            Self::SkLookup => helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_lookup_tcp),
            Self::NetnsCookie => helper(ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie),
            Self::SetRetval => helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval),
            Self::TaskRead => helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_probe_read_kernel),
            Self::TypeInfo => std::fs::File::open(TYPE_INFO).is_ok(),
        }
    }
}

/// Each feature, and whether this kernel has it.
#[must_use]
pub fn probe() -> Vec<(Feature, bool)> {
    Feature::ALL
        .iter()
        .map(|feature| (*feature, feature.is_present()))
        .collect()
}

/// Whether a program can translate pids into the agent's own pid namespace.
pub(super) fn can_translate_pids() -> bool {
    is_helper_supported(
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_ns_current_pid_tgid,
    )
    .unwrap_or(false)
}
