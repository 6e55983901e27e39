//! Reads a few fields out of an object's JSON and steps over the rest, which is most of what reading costs.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// An object with only the fields at `paths` (dotted, of maps alone), as far as they are there.
///
/// # Errors
/// If it is no JSON.
pub fn pick(json: &[u8], paths: &[&str]) -> serde_json::Result<Value> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let picked = Pick { paths: Cow::Borrowed(paths) }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(picked)
}

struct Pick<'a> {
    paths: Cow<'a, [&'a str]>,
}

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut picked = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let below: Vec<&str> = self.paths.iter().filter_map(|path| path.strip_prefix(&*key)).collect();
            if below.contains(&"") {
                picked.insert(key, map.next_value()?);
                continue;
            }
            let below: Vec<&str> = below.into_iter().filter_map(|rest| rest.strip_prefix('.')).collect();
            if below.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                let value = map.next_value_seed(Pick { paths: Cow::Owned(below) })?;
                picked.insert(key, value);
            }
        }
        Ok(Value::Object(picked))
    }

    // What is no map has nothing at the path.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_asked_for() {
        let object = json!({
            "metadata": {"name": "a\"b", "labels": {"x.y/z": "1"}, "annotations": {"big": "…"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}], "nodeNameHint": 1},
            "status": {"phase": null, "n": -1.5},
            "type": "Opaque",
        });
        let paths = ["metadata.labels", "spec.nodeName", "status.phase.deep", "type", "status.n", "gone.too"];
        let picked = pick(object.to_string().as_bytes(), &paths).unwrap();
        let expected = json!({
            "metadata": {"labels": {"x.y/z": "1"}},
            "spec": {"nodeName": "n"},
            "status": {"phase": null, "n": -1.5},
            "type": "Opaque",
        });
        assert_eq!(picked, expected);
    }

    #[test]
    fn keys_with_escapes_are_read() {
        assert_eq!(
            pick(br#"{"\u0061":{"b\n":1,"c":[{"a":2}]}}"#, &["a.c"]).unwrap(),
            json!({"a": {"c": [{"a": 2}]}})
        );
    }

    #[test]
    fn what_is_no_map_has_no_fields() {
        for text in ["[1,[2]]", "1", "-1", "1.5", "true", "\"a\"", "null"] {
            assert_eq!(pick(text.as_bytes(), &["a"]).unwrap(), Value::Null, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_an_error() {
        for text in ["", "{", "{\"a\":1}x", "{\"b\":[1,}", "{\"b\":\"\\q\"}"] {
            assert!(pick(text.as_bytes(), &["a"]).is_err(), "{text}");
        }
    }
}
