//! What a decision looks at.

/// A request, as far as decisions look at it. Its path is normalized already.
pub trait RequestView {
    /// `GET`, `POST`...
    fn method(&self) -> &str;
    /// Without the query.
    fn path(&self) -> &str;
    /// After the `?`.
    fn query(&self) -> Option<&str>;
    /// `Host` or `:authority`, with its port if it has one.
    fn host(&self) -> &str;
    /// Whether `test` holds for any value of a header (name in lower case).
    fn any_header(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> bool;
}

/// The parts of a proved SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The whole ID.
    pub uri: &'a str,
    /// Its trust domain.
    pub trust_domain: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its service account.
    pub service_account: &'a str,
}

impl<'a> Identity<'a> {
    /// Takes a proved ID apart; `None` if it is not a workload's.
    pub fn from_uri(uri: &'a str) -> Option<Self> {
        let rest = uri.strip_prefix("spiffe://")?;
        let (trust_domain, rest) = rest.split_once("/ns/")?;
        let (namespace, service_account) = rest.split_once("/sa/")?;
        Some(Self {
            uri,
            trust_domain,
            namespace,
            service_account,
        })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::RequestView;

    /// A request in tests.
    pub struct Plain<'a> {
        pub method: &'a str,
        pub path: &'a str,
        pub query: Option<&'a str>,
        pub host: &'a str,
        pub headers: &'a [(&'a str, &'a str)],
    }

    impl<'a> Plain<'a> {
        pub fn get(path: &'a str) -> Self {
            Self {
                method: "GET",
                path,
                query: None,
                host: "web.shop",
                headers: &[],
            }
        }
    }

    impl RequestView for Plain<'_> {
        fn method(&self) -> &str {
            self.method
        }
        fn path(&self) -> &str {
            self.path
        }
        fn query(&self) -> Option<&str> {
            self.query
        }
        fn host(&self) -> &str {
            self.host
        }
        fn any_header(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> bool {
            self.headers.iter().any(|(n, v)| *n == name && test(v))
        }
    }
}
