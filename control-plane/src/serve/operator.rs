//! What operators ask.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_proto as proto;
use weft_proto::operator_server::Operator;
use weft_proto::{
    DescribeWorkloadRequest, DescribeWorkloadResponse, EdgesRequest, EdgesResponse, ProxiesRequest,
    ProxiesResponse, StatusRequest, StatusResponse, names,
};

use crate::State;
use crate::index::{Asker, is_meshed, pod_addresses};
use crate::kubernetes::accepted;

/// Answers operators.
pub struct OperatorService {
    state: Arc<State>,
}

impl OperatorService {
    /// From a state.
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn edges(
        &self,
        request: Request<EdgesRequest>,
    ) -> Result<Response<EdgesResponse>, Status> {
        Ok(Response::new(
            self.state.edges.sum(request.get_ref().window_seconds),
        ))
    }

    async fn proxies(
        &self,
        _: Request<ProxiesRequest>,
    ) -> Result<Response<ProxiesResponse>, Status> {
        let index = self.state.index();
        self.state
            .proxies
            .retain(|namespace, pod| index.pod(namespace, pod).is_some());
        Ok(Response::new(ProxiesResponse {
            proxies: self.state.proxies.all(),
            control_plane_version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.state.issuer.trust_domain(),
            roots_der: self.state.issuer.roots_der(),
            intermediate_der: self.state.issuer.certificate_der(),
        }))
    }

    async fn describe_workload(
        &self,
        request: Request<DescribeWorkloadRequest>,
    ) -> Result<Response<DescribeWorkloadResponse>, Status> {
        let DescribeWorkloadRequest { namespace, name } = request.into_inner();
        let mut index = self.state.index();
        let found = index.find_pods(&namespace, &name);
        if found.is_empty() {
            return Err(Status::not_found(format!(
                "no pod, deploy/NAME or service {name} in the namespace {namespace}"
            )));
        }
        let mut workloads = Vec::new();
        for (namespace, pod) in found {
            let asker = Asker {
                namespace: namespace.clone(),
                pod: pod.clone(),
            };
            let resource = index.resolve(names::INBOUND, &asker);
            let inbound = resource.and_then(|r| match &r.body {
                Some(proto::resource::Body::Inbound(inbound)) => Some(inbound.clone()),
                _ => None,
            });
            let known = index.pod(&namespace, &pod);
            workloads.push(proto::DescribedWorkload {
                inbound,
                address: known
                    .and_then(|p| pod_addresses(p).first().map(ToString::to_string))
                    .unwrap_or_default(),
                meshed: known.is_some_and(is_meshed),
            });
        }
        Ok(Response::new(DescribeWorkloadResponse { workloads }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let mut objects = self.state.index().status();
        // Of what cannot be used, an older version may be in force.
        let written = self.state.written.borrow().clone();
        for (key, written) in written.iter() {
            let Some(why) = &written.refused else {
                continue;
            };
            objects.retain(|o| {
                (&o.kind, &o.namespace, &o.name) != (&key.kind, &key.namespace, &key.name)
            });
            objects.push(proto::ObjectStatus {
                kind: key.kind.clone(),
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                conditions: vec![accepted(Some(why))],
                proxies: 0,
            });
        }
        Ok(Response::new(StatusResponse { objects }))
    }
}
