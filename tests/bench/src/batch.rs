//! Pods of one image, so many at a time.

/// What to start.
#[derive(clap::Args)]
pub struct Batch {
    /// Image of the one container; it is on the node already.
    #[arg(long)]
    pub image: String,
    /// Name of this run, the first part of the pods' names.
    #[arg(long)]
    pub name: String,
    /// How many pods.
    #[arg(long, default_value_t = 50)]
    pods: usize,
    /// How many are begun before the first of them is waited for.
    #[arg(long, default_value_t = 1)]
    at_once: usize,
}

impl Batch {
    /// The pods' names, in the groups that are begun together.
    pub fn groups(&self) -> Vec<Vec<String>> {
        let names: Vec<String> = (0..self.pods).map(|n| format!("{}-{n}", self.name)).collect();
        names.chunks(self.at_once.max(1)).map(<[String]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_groups() {
        let groups = |pods, at_once| Batch { image: String::new(), name: "a".into(), pods, at_once }.groups();
        assert_eq!(groups(3, 2), [vec!["a-0".to_owned(), "a-1".into()], vec!["a-2".into()]]);
        assert_eq!(groups(2, 0).len(), 2);
        assert!(groups(0, 5).is_empty());
    }
}
