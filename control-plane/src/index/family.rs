//! Which endpoints of a dual-stack service a caller is led to: those of the
//! address family that it called (KEP-563), for an application may listen on one
//! family only.

use std::net::IpAddr;

use weft_proto as proto;

use super::Index;

impl Index {
    /// Names the endpoints of one family wherever a service has both.
    pub(super) fn keep_family(&self, called: IpAddr, to: &mut proto::ServiceDestination) {
        let family = if called.is_ipv6() { "IPv6" } else { "IPv4" };
        let backends = to.rules.iter_mut().flat_map(|rule| &mut rule.backends);
        let names = backends.map(|backend| &mut backend.endpoints);
        for name in names.chain([&mut to.endpoints]) {
            if self.has_both_families(name) {
                name.push('/');
                name.push_str(family);
            }
        }
    }

    /// Of the service that `endpoints/NAMESPACE/SERVICE/PORT` names.
    fn has_both_families(&self, name: &str) -> bool {
        let mut parts = name.split('/').skip(1);
        let (Some(namespace), Some(service)) = (parts.next(), parts.next()) else {
            return false;
        };
        let key = (namespace.to_owned(), service.to_owned());
        let has = |family: &str| {
            let mut slices = self.tables.slices(&key);
            slices.any(|slice| slice.address_type == family)
        };
        has("IPv4") && has("IPv6")
    }
}
