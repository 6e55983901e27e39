//! RFC 6902 and RFC 7386.

use super::{MAX_OPERATIONS, PatchError};
use json_patch::{PatchOperation, patch_unsafe};
use serde_json::Value;

/// Most bytes that all `copy` operations of one patch may add, as upstream's `JSONPatchMaxCopyBytes`.
const MAX_COPY_BYTES: usize = 3 * 1024 * 1024;

/// Applies a JSON patch: all operations or none.
pub fn json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::Malformed(
            "json: cannot unmarshal object into Go value of type jsonpatch.Patch".to_owned(),
        ));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations(operations.len()));
    }
    let mut result = current.clone();
    let mut copied = 0_usize;
    for operation in operations {
        let parsed: PatchOperation = match serde_json::from_value(operation.clone()) {
            Ok(parsed) => parsed,
            Err(error) => return Err(PatchError::Malformed(format!("error decoding patch: {error}"))),
        };
        if let PatchOperation::Copy(copy) = &parsed
            && let Some(source) = result.pointer(copy.from.as_str())
        {
            copied = copied.saturating_add(source.to_string().len());
            if copied > MAX_COPY_BYTES {
                return Err(PatchError::DoesNotApply(format!(
                    "Unable to copy, the accumulated size increase of copy is {copied}, exceeding the limit \
                     {MAX_COPY_BYTES}"
                )));
            }
        }
        if patch_unsafe(&mut result, std::slice::from_ref(&parsed)).is_err() {
            let why = complaint(&parsed);
            return Err(match parsed {
                PatchOperation::Test(_) => PatchError::TestFailed(why),
                _ => PatchError::DoesNotApply(why),
            });
        }
    }
    Ok(result)
}

/// The words of the library that upstream applies patches with.
fn complaint(operation: &PatchOperation) -> String {
    let path = operation.path();
    match operation {
        PatchOperation::Add(_) => {
            format!("add operation does not apply: doc is missing path: \"{path}\": missing value")
        }
        PatchOperation::Remove(_) => {
            format!("remove operation does not apply: doc is missing path: \"{path}\": missing value")
        }
        PatchOperation::Replace(_) => {
            format!("replace operation does not apply: doc is missing key: {path}: missing value")
        }
        PatchOperation::Move(moved) => {
            format!("move operation does not apply: doc is missing from path: {}: missing value", moved.from)
        }
        PatchOperation::Copy(copy) => {
            format!("copy operation does not apply: doc is missing from path: {}: missing value", copy.from)
        }
        PatchOperation::Test(_) => format!("testing value {path} failed: test failed"),
    }
}

/// Applies a JSON merge patch: null removes, objects merge, all else replaces.
pub fn merge_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("Invalid JSON Patch".to_owned()));
    }
    let mut result = current.clone();
    json_patch::merge(&mut result, patch);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn json_patches_apply_or_complain() {
        let current = json!({"a": {"b": 1}, "l": [1, 2]});
        let check = |patch: Value, want: Result<Value, (u16, &str)>| {
            let got = json_patch(&current, &patch);
            match want {
                Ok(value) => assert_eq!(got, Ok(value)),
                Err((status, text)) => {
                    let error = got.unwrap_err();
                    assert_eq!((error.status(), error.to_string().as_str()), (status, text));
                }
            }
        };
        check(
            json!([{"op": "replace", "path": "/a/b", "value": 2}, {"op": "add", "path": "/l/-", "value": 3}]),
            Ok(json!({"a": {"b": 2}, "l": [1, 2, 3]})),
        );
        check(
            json!([{"op": "test", "path": "/a/b", "value": 5}]),
            Err((422, "testing value /a/b failed: test failed")),
        );
        check(
            json!([{"op": "replace", "path": "/x", "value": 5}]),
            Err((422, "replace operation does not apply: doc is missing key: /x: missing value")),
        );
        check(
            json!({"op": "test"}),
            Err((400, "json: cannot unmarshal object into Go value of type jsonpatch.Patch")),
        );
        let many = vec![json!({"op": "test", "path": "/a/b", "value": 1}); MAX_OPERATIONS + 1];
        assert_eq!(json_patch(&current, &Value::Array(many)).unwrap_err().status(), 413);
        // Doubling forty times would fill any memory.
        let bomb = vec![json!({"op": "copy", "from": "/l", "path": "/l/-"}); 40];
        assert_eq!(json_patch(&current, &Value::Array(bomb)).unwrap_err().status(), 422);
    }

    #[test]
    fn merge_patches_are_rfc_7386() {
        let merged = merge_patch(&json!({"a": 1, "b": {"c": 1}}), &json!({"a": null, "b": {"d": [null]}}));
        assert_eq!(merged, Ok(json!({"b": {"c": 1, "d": [null]}})));
        assert_eq!(merge_patch(&json!({}), &json!([])).unwrap_err().status(), 400);
    }

    proptest! {
        #[test]
        fn hostile_patches_do_not_panic(op in "add|remove|replace|move|copy|test", path in "(/[a-z~0-9-]{0,3}){0,4}", from in "(/[a-z~0-9-]{0,3}){0,4}") {
            let _ = json_patch(&json!({"a": {"b": 1}, "l": [1, 2]}),
                &json!([{"op": op, "path": path, "from": from, "value": 1}]));
        }
    }
}
