//! Manifests from files: YAML or JSON, several documents each.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::validate::{Problem, validate};
use crate::{Namespace, Object};

/// Largest manifest file read, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 4 * 1024 * 1024;
/// Most manifest files read from one folder.
const MAX_FILES: usize = 10_000;

/// Why manifests cannot be used: where, what, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// The file, and the document or object in it.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

impl std::error::Error for LoadError {}

/// The version under which each kind is understood.
pub(crate) const KINDS: &[(&str, &str)] = &[
    ("Namespace", "v1"),
    ("ServiceAccount", "v1"),
    ("Service", "v1"),
    ("Pod", "v1"),
    ("Deployment", "apps/v1"),
    ("EndpointSlice", "discovery.k8s.io/v1"),
    ("HTTPRoute", "gateway.networking.k8s.io/v1"),
    ("GRPCRoute", "gateway.networking.k8s.io/v1"),
    ("ReferenceGrant", "gateway.networking.k8s.io/v1"),
    ("AuthorizationPolicy", "weft.dev/v1alpha1"),
    ("AuthenticationPolicy", "weft.dev/v1alpha1"),
];

/// Reads a file, or every `.yaml`, `.yml` and `.json` of a folder and its
/// subfolders, in the order of their names. All errors are told at once.
pub fn load_path(path: &Path) -> Result<Vec<Object>, Vec<LoadError>> {
    let at = |problem: String| {
        vec![LoadError {
            place: path.display().to_string(),
            problem,
        }]
    };
    let mut files = Vec::new();
    collect(path, &mut files).map_err(|e| at(e.to_string()))?;
    if files.is_empty() {
        return Err(at("no .yaml, .yml or .json file is here".to_owned()));
    }
    let mut objects = Vec::new();
    let mut errors = Vec::new();
    for file in files {
        let text = match read_bounded(&file) {
            Ok(text) => text,
            Err(e) => {
                errors.push(LoadError {
                    place: file.display().to_string(),
                    problem: e.to_string(),
                });
                continue;
            }
        };
        match parse_manifests(&text, &file.display().to_string()) {
            Ok(more) => objects.extend(more),
            Err(more) => errors.extend(more),
        }
    }
    if errors.is_empty() {
        Ok(objects)
    } else {
        Err(errors)
    }
}

fn read_bounded(file: &Path) -> std::io::Result<String> {
    let size = std::fs::metadata(file)?.len();
    if size > MAX_MANIFEST_BYTES {
        return Err(std::io::Error::other(format!(
            "{size} bytes are more than a manifest may have ({MAX_MANIFEST_BYTES}): split the file"
        )));
    }
    std::fs::read_to_string(file)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for entry in entries {
        let manifest = entry
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if entry.is_dir() || manifest {
            collect(&entry, files)?;
        }
        if files.len() > MAX_FILES {
            return Err(std::io::Error::other("too many files"));
        }
    }
    Ok(())
}

/// Parses the documents of one file. `place` names it in errors.
pub fn parse_manifests(text: &str, place: &str) -> Result<Vec<Object>, Vec<LoadError>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| {
        vec![LoadError {
            place: place.to_owned(),
            problem: e.to_string(),
        }]
    })?;
    let mut objects = Vec::new();
    let mut errors = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        if document.is_null() {
            continue;
        }
        let place = format!("{place}: {}", describe(&document, index));
        match parse_object(document) {
            Ok(object) => objects.push(object),
            Err(problems) => errors.extend(problems.into_iter().map(|problem| LoadError {
                place: place.clone(),
                problem: problem.to_string(),
            })),
        }
    }
    if errors.is_empty() {
        Ok(objects)
    } else {
        Err(errors)
    }
}

fn describe(document: &Value, index: usize) -> String {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    match (text("/kind"), text("/metadata/name")) {
        (Some(kind), Some(name)) => format!("{kind} {name}"),
        (Some(kind), None) => format!("document {} ({kind})", index + 1),
        _ => format!("document {}", index + 1),
    }
}

/// Reads and validates one object.
pub fn parse_object(mut document: Value) -> Result<Object, Vec<Problem>> {
    let problem = |path: &str, text: String| {
        vec![Problem {
            path: path.to_owned(),
            text,
        }]
    };
    let field = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or("");
    let (kind, version) = (field("kind"), field("apiVersion"));
    let Some((kind, wanted)) = KINDS.iter().find(|(k, _)| *k == kind) else {
        let known: Vec<&str> = KINDS.iter().map(|(k, _)| *k).collect();
        return Err(problem(
            "kind",
            format!(
                "{kind:?} is not run here; known kinds: {}",
                known.join(", ")
            ),
        ));
    };
    if version != *wanted {
        return Err(problem(
            "apiVersion",
            format!("{version:?} is not known for {kind}: write {wanted:?}"),
        ));
    }
    // What an API server adds, and says nothing about what is wanted.
    if let Some(Value::Object(metadata)) = document.get_mut("metadata") {
        for added in [
            "resourceVersion",
            "generation",
            "managedFields",
            "ownerReferences",
        ] {
            metadata.remove(added);
        }
    }
    if let Some(map) = document.as_object_mut() {
        map.remove("kind");
        if *kind != "Pod" {
            map.remove("status");
        }
    }
    let mut object = read_kind(kind, document).map_err(|e| {
        let path = e.path().to_string();
        problem(&path, e.into_inner().to_string())
    })?;
    if !matches!(object, Object::Namespace(Namespace { .. })) {
        let metadata = object.metadata_mut();
        if metadata.namespace.is_empty() {
            "default".clone_into(&mut metadata.namespace);
        }
    }
    let problems = validate(&object);
    if problems.is_empty() {
        Ok(object)
    } else {
        Err(problems)
    }
}

/// By kind rather than by serde's tag, which would lose the place of an error.
fn read_kind(
    kind: &str,
    document: Value,
) -> Result<Object, serde_path_to_error::Error<serde_json::Error>> {
    use serde_path_to_error::deserialize;
    Ok(match kind {
        "Namespace" => Object::Namespace(deserialize(document)?),
        "ServiceAccount" => Object::ServiceAccount(deserialize(document)?),
        "Service" => Object::Service(deserialize(document)?),
        "Pod" => Object::Pod(deserialize(document)?),
        "Deployment" => Object::Deployment(deserialize(document)?),
        "EndpointSlice" => Object::EndpointSlice(deserialize(document)?),
        "HTTPRoute" => Object::HTTPRoute(deserialize(document)?),
        "GRPCRoute" => Object::GRPCRoute(deserialize(document)?),
        "ReferenceGrant" => Object::ReferenceGrant(deserialize(document)?),
        "AuthorizationPolicy" => Object::AuthorizationPolicy(deserialize(document)?),
        _ => Object::AuthenticationPolicy(deserialize(document)?),
    })
}
