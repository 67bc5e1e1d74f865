//! The constant tables of HPACK (RFC 7541, appendices A and B).

use std::sync::OnceLock;

/// Appendix A; index 1 is the first.
pub const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// Lengths of the codes of appendix B, in bits. The codes themselves follow
/// from them: they are canonical.
const CODE_LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// A state of the decoder is a node of the code's tree.
#[derive(Clone, Copy, Default)]
pub struct Step {
    /// Node after these four bits.
    pub next: u8,
    /// A symbol was completed.
    pub emit: Option<u8>,
    /// The bits are of no code (they lead to EOS).
    pub invalid: bool,
}

/// For each of the 256 inner nodes, what four bits lead to.
pub struct Huffman {
    /// By node and bits.
    pub steps: Vec<[Step; 16]>,
    /// Nodes at which a text may end: reached from the root by at most seven
    /// ones, the padding.
    pub accepting: Vec<bool>,
}

/// The decoder, made once.
pub fn huffman() -> &'static Huffman {
    static TABLE: OnceLock<Huffman> = OnceLock::new();
    TABLE.get_or_init(build)
}

/// A child: none yet, an inner node, or a symbol (256 is EOS).
#[derive(Clone, Copy)]
enum Child {
    None,
    Node(usize),
    Symbol(usize),
}

fn build() -> Huffman {
    let tree = build_tree();
    let mut steps = vec![[Step::default(); 16]; tree.len()];
    for (node, row) in steps.iter_mut().enumerate() {
        for (bits, step) in row.iter_mut().enumerate() {
            *step = walk(&tree, node, bits);
        }
    }
    let mut accepting = vec![false; tree.len()];
    let mut node = 0;
    for _ in 0..8 {
        accepting[node] = true;
        match tree[node][1] {
            Child::Node(next) => node = next,
            _ => break,
        }
    }
    Huffman { steps, accepting }
}

#[allow(clippy::indexing_slicing)] // over tables of this file only
fn build_tree() -> Vec<[Child; 2]> {
    let mut order: Vec<usize> = (0..CODE_LENGTHS.len()).collect();
    order.sort_by_key(|&symbol| (CODE_LENGTHS[symbol], symbol));
    let mut tree = vec![[Child::None; 2]];
    let (mut code, mut previous) = (0u32, 0u8);
    for symbol in order {
        let length = CODE_LENGTHS[symbol];
        code <<= length - previous;
        previous = length;
        let mut node = 0;
        for position in (0..length).rev() {
            let bit = (code >> position & 1) as usize;
            if position == 0 {
                tree[node][bit] = Child::Symbol(symbol);
            } else if let Child::Node(next) = tree[node][bit] {
                node = next;
            } else {
                let next = tree.len();
                tree.push([Child::None; 2]);
                tree[node][bit] = Child::Node(next);
                node = next;
            }
        }
        code += 1;
    }
    tree
}

/// Codes are at least five bits long, so four bits complete at most one symbol.
fn walk(tree: &[[Child; 2]], start: usize, bits: usize) -> Step {
    let mut node = start;
    let mut step = Step::default();
    for position in (0..4).rev() {
        match tree[node][bits >> position & 1] {
            Child::Node(next) => node = next,
            Child::Symbol(symbol) => match u8::try_from(symbol) {
                Ok(symbol) => {
                    step.emit = Some(symbol);
                    node = 0;
                }
                Err(_) => step.invalid = true,
            },
            Child::None => step.invalid = true,
        }
    }
    step.next = u8::try_from(node).unwrap_or_default();
    step
}
