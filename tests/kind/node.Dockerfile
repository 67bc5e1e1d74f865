# A node: kind's files over Debian, with Kubernetes' programs.
FROM weft/debian:current
COPY base/ /
COPY kind/ /kind/
COPY bin/ /usr/bin/
COPY import-images.sh /kind/
RUN ln -s kubernetes /usr/bin/kubelet \
 && ln -s kubernetes /usr/bin/kubectl \
 && ln -s /usr/sbin/runc /usr/local/sbin/runc \
 && mkdir -p /opt/cni /etc/kubernetes/manifests \
 && ln -s /usr/lib/cni /opt/cni/bin \
 && chmod 755 /usr/local/bin/entrypoint /kind/bin/*.sh \
 && ctr oci spec >/etc/containerd/cri-base.json \
 && sed -i 's#/usr/local/bin/containerd#/usr/bin/containerd#' /etc/systemd/system/containerd.service \
 && systemctl enable containerd kubelet
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
