//! Which pods a Deployment starts and stops next: RollingUpdate with the
//! default of 25 % surge and none unavailable for small numbers.

/// One pod of a Deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Made from the current template.
    pub current: bool,
    /// Ready to serve.
    pub ready: bool,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Pods to start.
    pub start: usize,
    /// Indices of pods to stop.
    pub stop: Vec<usize>,
}

/// The next step. `members` are those that are not being stopped.
pub fn next_step(replicas: usize, members: &[Member]) -> Step {
    let current = members.iter().filter(|m| m.current).count();
    let surge = replicas.div_ceil(4).max(1);
    let start = replicas
        .saturating_sub(current)
        .min((replicas + surge).saturating_sub(members.len()));
    let mut ready = members.iter().filter(|m| m.ready).count();
    let mut stop = Vec::new();
    // Old ones as new ones are ready; those that serve nobody at once.
    for (index, _) in members
        .iter()
        .enumerate()
        .filter(|(_, m)| !m.current && !m.ready)
    {
        stop.push(index);
    }
    for (index, _) in members
        .iter()
        .enumerate()
        .filter(|(_, m)| !m.current && m.ready)
    {
        if ready > replicas || replicas == 0 {
            stop.push(index);
            ready -= 1;
        }
    }
    // Too many of the current ones: those that are not ready first.
    let mut excess = current.saturating_sub(replicas);
    for wanted in [false, true] {
        for (index, member) in members.iter().enumerate().rev() {
            if excess > 0 && member.current && member.ready == wanted {
                stop.push(index);
                excess -= 1;
            }
        }
    }
    Step { start, stop }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(current: bool, ready: bool) -> Member {
        Member { current, ready }
    }

    #[test]
    fn a_rollout_never_has_fewer_ready_pods_than_wanted() {
        let old = vec![member(false, true); 3];
        assert_eq!(
            next_step(3, &old),
            Step {
                start: 1,
                stop: vec![]
            }
        );
        let mut members = old.clone();
        members.push(member(true, false));
        assert_eq!(
            next_step(3, &members),
            Step {
                start: 0,
                stop: vec![]
            }
        );
        members[3].ready = true;
        assert_eq!(
            next_step(3, &members),
            Step {
                start: 0,
                stop: vec![0]
            }
        );
    }

    #[test]
    fn scaling_down_stops_those_that_are_not_ready_first() {
        let members = [member(true, true), member(true, false), member(true, true)];
        assert_eq!(
            next_step(1, &members),
            Step {
                start: 0,
                stop: vec![1, 2]
            }
        );
        assert_eq!(next_step(0, &members[..1]).stop, [0]);
    }
}
