//! Children that become a container's first process, or a command in one.

use std::os::fd::{AsFd, OwnedFd};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::protocol::Failure;
use super::{process, rootfs};
use crate::plan::{ContainerPlan, ExecPlan};
use crate::sys;

/// Builds the container around this process and becomes its command. Only returns on failure.
pub fn become_container(
    plan: &ContainerPlan,
    sync: &OwnedFd,
    podinit: &OwnedFd,
    stdio: &[OwnedFd],
) -> Failure {
    let result = (|| {
        sys::set_not_dumpable().map_err(|e| Failure::setup("prctl", e))?;
        sys::ignore_no_signals().map_err(|e| Failure::setup("signals", e))?;
        rustix::process::umask(rustix::fs::Mode::empty());
        let pod = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        move_into_thread_name_spaces(podinit.as_fd(), pod)
            .map_err(|e| Failure::setup("joining the pod", e))?;
        sys::unshare_cgroup().map_err(|e| Failure::setup("cgroup namespace", e))?;
        // Written while the node's /proc is still there.
        let warnings = process::set_oom_score(&plan.process)?;
        let root = rootfs::build(plan)?;
        rootfs::enter(&root).map_err(|e| Failure::setup("pivot_root", e))?;
        drop(root);
        Ok(warnings)
    })();
    match result {
        Ok(warnings) => process::become_command(&plan.process, sync, stdio, warnings, true),
        Err(failure) => failure,
    }
}

/// Joins a container and becomes the command. Only returns on failure.
pub fn become_exec(plan: &ExecPlan, sync: &OwnedFd, target: &OwnedFd, stdio: &[OwnedFd]) -> Failure {
    let result = (|| {
        sys::set_not_dumpable().map_err(|e| Failure::setup("prctl", e))?;
        sys::ignore_no_signals().map_err(|e| Failure::setup("signals", e))?;
        let warnings = process::set_oom_score(&plan.process)?;
        // The mount namespace goes with the rest in one call; root and working folder become the container's.
        let all = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP;
        move_into_thread_name_spaces(target.as_fd(), all)
            .map_err(|e| Failure::setup("joining the container", e))?;
        Ok(warnings)
    })();
    match result {
        Ok(warnings) => process::become_command(&plan.process, sync, stdio, warnings, false),
        Err(failure) => failure,
    }
}
