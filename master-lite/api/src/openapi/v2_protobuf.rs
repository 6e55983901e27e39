//! An OpenAPI v2 document as `openapi.v2.Document`, the protobuf form that client-go's discovery asks for.
//!
//! Field numbers: `OpenAPIv2.proto` of gnostic-models v0.7. Written is what documents of this crate, and schemas of
//! CustomResourceDefinitions, can hold.

use serde_json::Value;

use crate::codec::protobuf::wire::{put_bytes, put_double, put_number};

/// Encodes a document.
pub fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::of(document);
    out.text(1, "swagger");
    out.one(2, "info", |info| {
        info.text(1, "title");
        info.text(2, "version");
    });
    out.one(8, "paths", |paths| paths.named(2, path_item));
    out.one(9, "definitions", |definitions| definitions.named(1, schema));
    out.each(12, "security", |requirement| requirement.named(1, |scopes| scopes.own_texts(1)));
    out.one(13, "securityDefinitions", |definitions| {
        definitions.named(1, |item| {
            item.inner(2, |key| {
                key.text(1, "type");
                key.text(2, "name");
                key.text(3, "in");
                key.text(4, "description");
                key.extensions(5);
            });
        });
    });
    out.extensions(16);
    out.bytes
}

fn path_item(item: &mut Message<'_>) {
    for (number, method) in
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")]
    {
        item.one(number, method, operation);
    }
    item.each(9, "parameters", parameter);
    item.extensions(10);
}

fn operation(operation: &mut Message<'_>) {
    operation.texts(1, "tags");
    operation.text(2, "summary");
    operation.text(3, "description");
    operation.text(5, "operationId");
    operation.texts(6, "produces");
    operation.texts(7, "consumes");
    operation.each(8, "parameters", parameter);
    operation.one(9, "responses", |responses| {
        responses.named(1, |value| {
            value.inner(1, |response| {
                response.text(1, "description");
                response.one(2, "schema", |item| item.inner(1, schema));
                response.extensions(5);
            });
        });
    });
    operation.texts(10, "schemes");
    operation.flag(11, "deprecated");
    operation.extensions(13);
}

/// A `ParametersItem` around a `Parameter`.
fn parameter(item: &mut Message<'_>) {
    let place = item.value["in"].as_str().unwrap_or_default();
    match place {
        "body" => item.inner(1, |parameter| {
            parameter.inner(1, |body| {
                body.text(1, "description");
                body.text(2, "name");
                body.text(3, "in");
                body.flag(4, "required");
                body.one(5, "schema", schema);
            });
        }),
        "query" | "path" => item.inner(1, |parameter| {
            // In a path nothing can be empty: the numbers after that flag are one less.
            let (which, less) = if place == "query" { (3, 0) } else { (4, 1) };
            parameter.inner(2, |other| {
                other.inner(which, |simple| {
                    simple.flag(1, "required");
                    simple.text(2, "in");
                    simple.text(3, "description");
                    simple.text(4, "name");
                    simple.text(6 - less, "type");
                    simple.text(7 - less, "format");
                    simple.flag(20 - less, "uniqueItems");
                });
            });
        }),
        _ => {}
    }
}

fn schema(schema: &mut Message<'_>) {
    schema.text(1, "$ref");
    schema.text(2, "format");
    schema.text(3, "title");
    schema.text(4, "description");
    schema.any(5, "default");
    schema.double(6, "multipleOf");
    schema.double(7, "maximum");
    schema.flag(8, "exclusiveMaximum");
    schema.double(9, "minimum");
    schema.flag(10, "exclusiveMinimum");
    schema.integer(11, "maxLength");
    schema.integer(12, "minLength");
    schema.text(13, "pattern");
    schema.integer(14, "maxItems");
    schema.integer(15, "minItems");
    schema.flag(16, "uniqueItems");
    schema.integer(17, "maxProperties");
    schema.integer(18, "minProperties");
    schema.texts(19, "required");
    for value in schema.value["enum"].as_array().into_iter().flatten() {
        put_bytes(&mut schema.bytes, 20, &any(value));
    }
    schema.one(21, "additionalProperties", |additional| match additional.value {
        Value::Bool(flag) => put_number(&mut additional.bytes, 2, u64::from(*flag)),
        _ => additional.inner(1, self::schema),
    });
    schema.one(22, "type", |kind| match kind.value {
        Value::Array(_) => kind.own_texts(1),
        text => put_bytes(&mut kind.bytes, 1, text.as_str().unwrap_or_default().as_bytes()),
    });
    schema.one(23, "items", |items| items.inner(1, self::schema));
    schema.each(24, "allOf", self::schema);
    schema.one(25, "properties", |properties| properties.named(1, self::schema));
    schema.text(26, "discriminator");
    schema.flag(27, "readOnly");
    schema.any(30, "example");
    schema.extensions(31);
}

/// `Any` with its text in YAML, of which JSON is a part.
fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 2, format!("{value}\n").as_bytes());
    out
}

/// A message in the making, and the tree it is made of. As in proto3, what is empty or zero is not written.
struct Message<'v> {
    value: &'v Value,
    bytes: Vec<u8>,
}

impl<'v> Message<'v> {
    fn of(value: &'v Value) -> Self {
        Self { value, bytes: Vec::new() }
    }

    fn put(&mut self, number: u32, value: &'v Value, fill: impl FnOnce(&mut Message<'v>)) {
        let mut inner = Message::of(value);
        fill(&mut inner);
        put_bytes(&mut self.bytes, number, &inner.bytes);
    }

    fn text(&mut self, number: u32, key: &str) {
        if let Some(text) = self.value[key].as_str().filter(|text| !text.is_empty()) {
            put_bytes(&mut self.bytes, number, text.as_bytes());
        }
    }

    fn texts(&mut self, number: u32, key: &str) {
        for text in self.value[key].as_array().into_iter().flatten().filter_map(Value::as_str) {
            put_bytes(&mut self.bytes, number, text.as_bytes());
        }
    }

    /// Texts of the tree itself, which is a list.
    fn own_texts(&mut self, number: u32) {
        for text in self.value.as_array().into_iter().flatten().filter_map(Value::as_str) {
            put_bytes(&mut self.bytes, number, text.as_bytes());
        }
    }

    fn flag(&mut self, number: u32, key: &str) {
        if self.value[key] == true {
            put_number(&mut self.bytes, number, 1);
        }
    }

    fn double(&mut self, number: u32, key: &str) {
        if let Some(value) = self.value[key].as_f64().filter(|value| *value != 0.0) {
            put_double(&mut self.bytes, number, value);
        }
    }

    fn integer(&mut self, number: u32, key: &str) {
        if let Some(value) = self.value[key].as_i64().filter(|value| *value != 0) {
            put_number(&mut self.bytes, number, value.cast_unsigned());
        }
    }

    fn any(&mut self, number: u32, key: &str) {
        if let Some(value) = self.value.get(key) {
            put_bytes(&mut self.bytes, number, &any(value));
        }
    }

    /// The message of a key, if that is there.
    fn one(&mut self, number: u32, key: &str, fill: impl FnOnce(&mut Message<'v>)) {
        if let Some(value) = self.value.get(key) {
            self.put(number, value, fill);
        }
    }

    /// Another message made of the same tree.
    fn inner(&mut self, number: u32, fill: impl FnOnce(&mut Message<'v>)) {
        self.put(number, self.value, fill);
    }

    /// A message for each element of a key's list.
    fn each(&mut self, number: u32, key: &str, fill: impl Fn(&mut Message<'v>)) {
        let value: &'v Value = self.value;
        for value in value[key].as_array().into_iter().flatten() {
            self.put(number, value, &fill);
        }
    }

    /// A pair of name and message for each entry of the tree.
    fn named(&mut self, number: u32, fill: impl Fn(&mut Message<'v>)) {
        let value: &'v Value = self.value;
        for (name, value) in value.as_object().into_iter().flatten() {
            self.put(number, value, |pair| {
                put_bytes(&mut pair.bytes, 1, name.as_bytes());
                pair.put(2, value, &fill);
            });
        }
    }

    /// Keys that begin with `x-`.
    fn extensions(&mut self, number: u32) {
        let value: &'v Value = self.value;
        for (name, value) in
            value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-"))
        {
            self.put(number, value, |pair| {
                put_bytes(&mut pair.bytes, 1, name.as_bytes());
                put_bytes(&mut pair.bytes, 2, &any(value));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// By openapi_v2.ParseDocument and proto.Marshal from the tree below.
    const EXPECTED: &[u8] =
        b"\n\x032.0\x12\x06\n\x01T\x12\x01vB\xa5\x01\x12\xa2\x01\n\x02/a\x12\x9b\x01\x12{B\x1b\n\x19\x12\
\x17\x1a\x15\x12\x05query\"\x01n2\x06string\xa0\x01\x01B)\n'\n%\x12\x04body\x1a\x04body \x01*\
\x159\x00\x00\x00\x00\x00\x00\x04@\xb2\x01\x09\n\x07integerJ$\n\"\n\x03200\x12\x1b\n\x19\n\x02OK\
\x12\x13\n\x11\n\x0f#/definitions/Dj\x0b\n\x03x-n\x12\x04\x12\x027\nJ\x1c\n\x1a\x12\x18\"\x16\
\x08\x01\x12\x04path\"\x01p*\x06string\x98\x01\x01J{\ny\n\x01D\x12t\x9a\x01\x01p\xb2\x01\x08\n\
\x06object\xca\x01b\n\x16\n\x01p\x12\x11\n\x0f#/definitions/D\n&\n\x01q\x12!\xb2\x01\x07\n\x05ar\
ray\xba\x01\x14\n\x12\xa2\x01\x04\x12\x021\n\xb2\x01\x08\n\x06string\n \n\x01r\x12\x1b\xaa\x01\
\x0d\n\x0b\xb2\x01\x08\n\x06string\xb2\x01\x08\n\x06objectb\x07\n\x05\n\x01B\x12\x00j(\n&\n\x01B\
\x12!\x12\x1f\n\x06apiKey\x12\x0dauthorization\x1a\x06header";

    #[test]
    fn bytes_are_those_of_gnostic() {
        let tree = json!({"swagger":"2.0","info":{"title":"T","version":"v"},"paths":{"/a":{"get":{"parameters":[{"name":"n","in":"query","type":"string","uniqueItems":true},{"name":"body","in":"body","required":true,"schema":{"type":"integer","maximum":2.5}}],"responses":{"200":{"description":"OK","schema":{"$ref":"#/definitions/D"}}},"x-n":7},"parameters":[{"name":"p","in":"path","required":true,"type":"string","uniqueItems":true}]}},"definitions":{"D":{"type":"object","required":["p"],"properties":{"p":{"$ref":"#/definitions/D"},"q":{"type":"array","items":{"type":"string","enum":[1]}},"r":{"type":"object","additionalProperties":{"type":"string"}}}}},"securityDefinitions":{"B":{"type":"apiKey","name":"authorization","in":"header"}},"security":[{"B":[]}]});
        assert_eq!(document(&tree), EXPECTED);
    }
}
