//! Clients that mean ill or know no better: slow, endless, half open, too many.
//! Each gets a bounded answer, and whoever else calls notices nothing.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use weft_tests_local::*;

fn shop() -> Mesh {
    Mesh::up(
        &(client("client") + &web("web", 1) + &unmeshed("plain", 1, "command: [sleep, infinity]")),
    )
}

/// A Python client in a pod, to `web`; its last line.
fn python(mesh: &Mesh, pod: &str, script: &str) -> String {
    let script = format!(
        "import socket,struct,time,threading\n\
         def connect():\n s=socket.create_connection(('web',80),5);s.settimeout(60);return s\n\
         def frame(kind,flags,stream,body=b''): return struct.pack('>I',len(body))[1:]+bytes([kind,flags])+struct.pack('>I',stream)+body\n\
         def ended(s):\n\
         \x20try:\n\
         \x20 d=b''\n\
         \x20 while True:\n\
         \x20  n=s.recv(65536)\n\
         \x20  if not n: return d\n\
         \x20  d+=n\n\
         \x20except (ConnectionResetError,BrokenPipeError): return d+b'RESET'\n\
         PREFACE=b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'+frame(4,0,0)\n\
         GET=b'\\x82\\x86\\x84\\x41\\x03web'\n\
         {script}"
    );
    let ran = mesh.exec(pod, &["/usr/bin/python3", "-c", &script]);
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.out.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_head_that_never_ends_is_answered_408() {
    let mesh = shop();
    let start = Instant::now();
    let said = python(
        &mesh,
        "deploy/client",
        "s=connect();s.sendall(b'GET / HTTP/1.1\\r\\nHost: web\\r\\nX: ')\nprint(ended(s)[:12])",
    );
    assert!(said.contains("HTTP/1.1 408"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(45));
}

#[test]
fn a_head_that_is_too_large_is_answered_431() {
    let mesh = shop();
    let said = python(
        &mesh,
        "deploy/client",
        "s=connect();s.sendall(b'GET / HTTP/1.1\\r\\nHost: web\\r\\n')\n\
         try:\n for i in range(4000): s.sendall(b'X-%d: %s\\r\\n'%(i,b'y'*100))\n\
         except OSError: pass\n\
         print(ended(s)[:12])",
    );
    assert!(
        said.contains("HTTP/1.1 431") || said.contains("RESET"),
        "{said}"
    );
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
}

/// Each flood ends its own connection with GOAWAY, soon, while others are served.
#[test]
fn http2_floods_end_their_own_connection_only() {
    let mesh = shop();
    let floods = [
        ("PING", "frame(6,0,0,b'12345678')"),
        ("SETTINGS", "frame(4,0,0)"),
        (
            "RST_STREAM (rapid reset)",
            "frame(1,5,2*i+1,GET)+frame(3,0,2*i+1,b'\\0\\0\\0\\x08')",
        ),
        (
            "empty DATA",
            "(frame(1,4,1,GET) if i==0 else b'')+frame(0,0,1)",
        ),
        (
            "empty CONTINUATION",
            "(frame(1,0,1,GET) if i==0 else b'')+frame(9,0,1)",
        ),
        ("PRIORITY", "frame(2,0,1,b'\\0\\0\\0\\0\\0')"),
    ];
    let before = resident(mesh.pid("client", "weft-proxy"));
    for (what, frames) in floods {
        let said = python(
            &mesh,
            "deploy/client",
            &format!(
                "s=connect();s.sendall(PREFACE)\n\
                 def read(r):\n r.append(ended(s))\n\
                 r=[];t=threading.Thread(target=read,args=(r,));t.start()\n\
                 sent=0\n\
                 try:\n\
                 \x20for i in range(200000):\n\
                 \x20 s.sendall({frames});sent=i\n\
                 except OSError: pass\n\
                 t.join(20)\n\
                 print('ended' if r and sent<199999 else 'goes on',sent)"
            ),
        );
        assert!(said.starts_with("ended"), "{what}: {said}");
        assert_eq!(mesh.get("deploy/client", "http://web/items"), 200, "{what}");
    }
    let after = resident(mesh.pid("client", "weft-proxy"));
    assert!(after < before + 8 * 1024, "{before} to {after} KiB");
}

#[test]
fn hundreds_of_half_open_and_silent_connections_hurt_nobody() {
    let mesh = shop();
    let pid = mesh.pid("web", "weft-proxy");
    let before = resident(pid);
    // Silent, half a preface, half a ClientHello, half a head: straight to the
    // sidecar from outside the mesh.
    let open = mesh.spawn(
        "deploy/plain",
        "exec /usr/bin/python3 -c \"import socket,time\nl=[]\nfor i in range(800):\n s=socket.create_connection(('web',80),5)\n s.sendall([b'',b'PRI * HT',b'\\x16\\x03\\x01\\x02\\x00\\x01',b'GET / HT'][i%4])\n l.append(s)\nprint('open',flush=True)\ntime.sleep(30)\"",
    );
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..20 {
        assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
        assert_eq!(mesh.get("deploy/plain", "http://web/items"), 200);
    }
    let during = resident(pid);
    drop(open);
    assert!(during < before + 16 * 1024, "{before} to {during} KiB");
}

#[test]
fn a_slow_reader_holds_nothing_but_its_own_stream() {
    let folder = Folder::new("slow");
    let large = std::fs::File::create(folder.0.join("large")).unwrap();
    large.set_len(200 << 20).unwrap();
    folder.write("items", "[]");
    let files = format!(
        "command: [/usr/bin/python3, -m, http.server, \"8080\", --directory, {}], readinessProbe: {{tcpSocket: {{port: 8080}}}}",
        folder.0.display()
    );
    let mesh = Mesh::up(
        &(client("client") + &deployment("web", 1, &files) + &service("web", "web", 80, 8080)),
    );
    assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    let before = resident(mesh.pid("client", "weft-proxy"));
    let slow = mesh.spawn(
        "deploy/client",
        "exec curl -s --limit-rate 10k -o /dev/null http://web/large",
    );
    std::thread::sleep(Duration::from_secs(3));
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(mesh.get("deploy/client", "http://web/items"), 200);
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    let during = resident(mesh.pid("client", "weft-proxy"));
    drop(slow);
    assert!(during < before + 8 * 1024, "{before} to {during} KiB");
}
