//! The object graph of a TF2 checkpoint (`trackable_object_graph.proto`): objects with named children, and the keys of their values.
//! A SavedModel stores a variable under the shortest path that leads to it, so that only the graph tells which layer it belongs to.

use std::collections::BTreeMap;

use super::wire::{Damage, Fields, Value};

/// Objects; number 0 is the root.
#[derive(Debug)]
pub struct ObjectGraph {
    objects: Vec<Object>,
}

#[derive(Debug, Default)]
struct Object {
    children: BTreeMap<String, usize>,
    /// Key of `VARIABLE_VALUE`.
    value: Option<String>,
}

impl ObjectGraph {
    /// Parses a `TrackableObjectGraph`.
    pub fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let mut objects = Vec::new();
        for field in Fields(bytes) {
            if let (1, value) = field? {
                objects.push(object(value.bytes()?)?);
            }
        }
        Ok(Self { objects })
    }

    /// The object at `path` below `object`, such as `model/resnet_model`.
    pub fn descend(&self, object: usize, path: &str) -> Option<usize> {
        path.split('/').try_fold(object, |at, name| self.objects.get(at)?.children.get(name).copied())
    }

    /// The elements of a list below `object`, in order.
    pub fn list(&self, object: usize, path: &str) -> Vec<usize> {
        let list = self.descend(object, path);
        let element = |index: usize| self.descend(list?, &index.to_string());
        (0..).map_while(element).collect()
    }

    /// Key of the variable at `path` below `object`.
    pub fn variable(&self, object: usize, path: &str) -> Option<&str> {
        self.objects.get(self.descend(object, path)?)?.value.as_deref()
    }
}

/// `TrackableObject`: children (1), attributes (2).
fn object(bytes: &[u8]) -> Result<Object, Damage> {
    let mut object = Object::default();
    for field in Fields(bytes) {
        match field? {
            (1, value) => {
                let (name, number) = child(value)?;
                object.children.insert(name, number);
            }
            (2, value) => {
                let (name, key) = attribute(value)?;
                if name == "VARIABLE_VALUE" {
                    object.value = Some(key);
                }
            }
            _ => {}
        }
    }
    Ok(object)
}

/// `ObjectReference`: number (1; 0 is not written), name (2).
fn child(value: Value<'_>) -> Result<(String, usize), Damage> {
    let (mut name, mut number) = (String::new(), 0);
    for field in Fields(value.bytes()?) {
        match field? {
            (1, value) => number = value.size()? as usize,
            (2, value) => name = value.text()?,
            _ => {}
        }
    }
    Ok((name, number))
}

/// `SerializedTensor`: name (1), key (3).
fn attribute(value: Value<'_>) -> Result<(String, String), Damage> {
    let (mut name, mut key) = (String::new(), String::new());
    for field in Fields(value.bytes()?) {
        match field? {
            (1, value) => name = value.text()?,
            (3, value) => key = value.text()?,
            _ => {}
        }
    }
    Ok((name, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of wire type 2.
    fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, value.len() as u8][..], value].concat()
    }

    fn child(name: &str, number: u8) -> Vec<u8> {
        bytes(1, &[&[8, number][..], &bytes(2, name.as_bytes())].concat())
    }

    fn object(parts: &[Vec<u8>]) -> Vec<u8> {
        bytes(1, &parts.concat())
    }

    /// As in a SavedModel: the variable of the second layer has a key of another path.
    #[test]
    fn keys_are_found_by_the_path_of_their_object() {
        let value = [bytes(1, b"VARIABLE_VALUE"), bytes(2, b"full name"), bytes(3, b"variables/7")].concat();
        let graph = [
            object(&[child("model", 1), child("variables", 4)]),
            object(&[child("layers", 2), child("kernel", 3)]),
            object(&[child("0", 1), child("1", 1)]),
            object(&[bytes(2, &value)]),
            object(&[child("7", 3)]),
        ];
        let graph = ObjectGraph::parse(&graph.concat()).unwrap();
        assert_eq!(graph.descend(0, "model/layers/1"), Some(1));
        assert_eq!(graph.list(0, "model/layers"), [1, 1]);
        assert_eq!(graph.list(0, "model/kernel"), [0; 0]);
        assert_eq!(graph.variable(0, "model/layers/0/kernel"), Some("variables/7"));
        assert_eq!(graph.variable(0, "variables/7"), Some("variables/7"));
        assert_eq!(graph.variable(0, "model/layers/2/kernel"), None);
    }

    #[test]
    fn damaged_graphs_are_refused() {
        for damaged in [&[10, 4, 10, 2, 8][..], &[8, 255], &[10, 1, 255], &[15]] {
            ObjectGraph::parse(damaged).unwrap_err();
        }
        // Numbers of objects that do not exist lead nowhere.
        let graph = ObjectGraph::parse(&object(&[child("model", 100)])).unwrap();
        assert_eq!(graph.variable(0, "model/kernel"), None);
    }
}
