//! Writes the descriptions that `kubectl explain` shows: taken out of k8s-openapi's schemas, one line each
//! (`type TAB field TAB text`, the field empty for the type itself), deflated.

use flate2::{Compression, write::DeflateEncoder};
use k8s_openapi::{
    api,
    apiextensions_apiserver::pkg::apis::apiextensions,
    apimachinery::pkg::apis::meta,
    kube_aggregator::pkg::apis::apiregistration,
    schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings},
};
use std::{collections::BTreeMap, error::Error, io::Write, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let mut generator = SchemaSettings::openapi3().into_generator();
    roots(&mut generator);
    // The definitions of the generator hold every type that a root leads to.
    let mut lines = BTreeMap::new();
    for (name, schema) in generator.take_definitions(true) {
        let mut add = |field: &str, text: &serde_json::Value| {
            if let Some(text) = text.as_str() {
                lines.insert(
                    (name.clone(), field.to_owned()),
                    text.replace('\\', "\\\\").replace('\n', "\\n"),
                );
            }
        };
        add("", &schema["description"]);
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            add(field, &property["description"]);
        }
    }
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    let file = std::fs::File::create(Path::new(&out).join("descriptions.deflate"))?;
    let mut encoder = DeflateEncoder::new(file, Compression::best());
    for ((name, field), text) in lines {
        writeln!(encoder, "{name}\t{field}\t{text}")?;
    }
    encoder.finish()?;
    Ok(())
}

/// Asks for the schema of every kind, which makes the generator collect it and all that it holds.
fn roots(generator: &mut SchemaGenerator) {
    fn root<T: JsonSchema>(generator: &mut SchemaGenerator) {
        let _ = generator.subschema_for::<T>();
    }
    root::<api::admissionregistration::v1::MutatingAdmissionPolicy>(generator);
    root::<api::admissionregistration::v1::MutatingAdmissionPolicyBinding>(generator);
    root::<api::admissionregistration::v1::MutatingWebhookConfiguration>(generator);
    root::<api::admissionregistration::v1::ValidatingAdmissionPolicy>(generator);
    root::<api::admissionregistration::v1::ValidatingAdmissionPolicyBinding>(generator);
    root::<api::admissionregistration::v1::ValidatingWebhookConfiguration>(generator);
    root::<api::admissionregistration::v1alpha1::MutatingAdmissionPolicy>(generator);
    root::<api::admissionregistration::v1alpha1::MutatingAdmissionPolicyBinding>(generator);
    root::<api::admissionregistration::v1beta1::MutatingAdmissionPolicy>(generator);
    root::<api::admissionregistration::v1beta1::MutatingAdmissionPolicyBinding>(generator);
    root::<api::apiserverinternal::v1alpha1::StorageVersion>(generator);
    root::<api::apps::v1::ControllerRevision>(generator);
    root::<api::apps::v1::DaemonSet>(generator);
    root::<api::apps::v1::Deployment>(generator);
    root::<api::apps::v1::ReplicaSet>(generator);
    root::<api::apps::v1::StatefulSet>(generator);
    root::<api::authentication::v1::SelfSubjectReview>(generator);
    root::<api::authentication::v1::TokenRequest>(generator);
    root::<api::authentication::v1::TokenReview>(generator);
    root::<api::authorization::v1::LocalSubjectAccessReview>(generator);
    root::<api::authorization::v1::SelfSubjectAccessReview>(generator);
    root::<api::authorization::v1::SelfSubjectRulesReview>(generator);
    root::<api::authorization::v1::SubjectAccessReview>(generator);
    root::<api::autoscaling::v1::HorizontalPodAutoscaler>(generator);
    root::<api::autoscaling::v1::Scale>(generator);
    root::<api::autoscaling::v2::HorizontalPodAutoscaler>(generator);
    root::<api::batch::v1::CronJob>(generator);
    root::<api::batch::v1::Job>(generator);
    root::<api::certificates::v1::CertificateSigningRequest>(generator);
    root::<api::certificates::v1alpha1::ClusterTrustBundle>(generator);
    root::<api::certificates::v1beta1::ClusterTrustBundle>(generator);
    root::<api::certificates::v1beta1::PodCertificateRequest>(generator);
    root::<api::coordination::v1::Lease>(generator);
    root::<api::coordination::v1alpha2::LeaseCandidate>(generator);
    root::<api::coordination::v1beta1::LeaseCandidate>(generator);
    root::<api::core::v1::Binding>(generator);
    root::<api::core::v1::ComponentStatus>(generator);
    root::<api::core::v1::ConfigMap>(generator);
    root::<api::core::v1::Endpoints>(generator);
    root::<api::core::v1::Event>(generator);
    root::<api::core::v1::LimitRange>(generator);
    root::<api::core::v1::Namespace>(generator);
    root::<api::core::v1::Node>(generator);
    root::<api::core::v1::PersistentVolume>(generator);
    root::<api::core::v1::PersistentVolumeClaim>(generator);
    root::<api::core::v1::Pod>(generator);
    root::<api::core::v1::PodTemplate>(generator);
    root::<api::core::v1::ReplicationController>(generator);
    root::<api::core::v1::ResourceQuota>(generator);
    root::<api::core::v1::Secret>(generator);
    root::<api::core::v1::Service>(generator);
    root::<api::core::v1::ServiceAccount>(generator);
    root::<api::discovery::v1::EndpointSlice>(generator);
    root::<api::events::v1::Event>(generator);
    root::<api::flowcontrol::v1::FlowSchema>(generator);
    root::<api::flowcontrol::v1::PriorityLevelConfiguration>(generator);
    root::<api::networking::v1::IPAddress>(generator);
    root::<api::networking::v1::Ingress>(generator);
    root::<api::networking::v1::IngressClass>(generator);
    root::<api::networking::v1::NetworkPolicy>(generator);
    root::<api::networking::v1::ServiceCIDR>(generator);
    root::<api::networking::v1beta1::IPAddress>(generator);
    root::<api::networking::v1beta1::ServiceCIDR>(generator);
    root::<api::node::v1::RuntimeClass>(generator);
    root::<api::policy::v1::Eviction>(generator);
    root::<api::policy::v1::PodDisruptionBudget>(generator);
    root::<api::rbac::v1::ClusterRole>(generator);
    root::<api::rbac::v1::ClusterRoleBinding>(generator);
    root::<api::rbac::v1::Role>(generator);
    root::<api::rbac::v1::RoleBinding>(generator);
    root::<api::resource::v1::DeviceClass>(generator);
    root::<api::resource::v1::ResourceClaim>(generator);
    root::<api::resource::v1::ResourceClaimTemplate>(generator);
    root::<api::resource::v1::ResourceSlice>(generator);
    root::<api::resource::v1alpha3::DeviceTaintRule>(generator);
    root::<api::resource::v1alpha3::ResourcePoolStatusRequest>(generator);
    root::<api::resource::v1beta1::DeviceClass>(generator);
    root::<api::resource::v1beta1::ResourceClaim>(generator);
    root::<api::resource::v1beta1::ResourceClaimTemplate>(generator);
    root::<api::resource::v1beta1::ResourceSlice>(generator);
    root::<api::resource::v1beta2::DeviceClass>(generator);
    root::<api::resource::v1beta2::DeviceTaintRule>(generator);
    root::<api::resource::v1beta2::ResourceClaim>(generator);
    root::<api::resource::v1beta2::ResourceClaimTemplate>(generator);
    root::<api::resource::v1beta2::ResourceSlice>(generator);
    root::<api::scheduling::v1::PriorityClass>(generator);
    root::<api::scheduling::v1alpha2::PodGroup>(generator);
    root::<api::scheduling::v1alpha2::Workload>(generator);
    root::<api::storage::v1::CSIDriver>(generator);
    root::<api::storage::v1::CSINode>(generator);
    root::<api::storage::v1::CSIStorageCapacity>(generator);
    root::<api::storage::v1::StorageClass>(generator);
    root::<api::storage::v1::VolumeAttachment>(generator);
    root::<api::storage::v1::VolumeAttributesClass>(generator);
    root::<api::storage::v1beta1::VolumeAttributesClass>(generator);
    root::<api::storagemigration::v1beta1::StorageVersionMigration>(generator);
    root::<apiextensions::v1::CustomResourceDefinition>(generator);
    root::<meta::v1::APIGroup>(generator);
    root::<meta::v1::APIGroupList>(generator);
    root::<meta::v1::APIResourceList>(generator);
    root::<meta::v1::APIVersions>(generator);
    root::<meta::v1::Status>(generator);
    root::<apiregistration::v1::APIService>(generator);
    root::<meta::v1::DeleteOptions>(generator);
    root::<meta::v1::ListMeta>(generator);
}
