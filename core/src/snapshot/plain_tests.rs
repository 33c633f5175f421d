use proptest::prelude::*;

use super::{
    testing::{BASE, Both},
    tests::any_command,
};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn a_plain_tree_and_an_overlay_give_the_same_layers(
        steps in prop::collection::vec(prop::collection::vec(any_command(), 1..8), 1..4)
    ) {
        let mut both = Both::new(&BASE, None);
        for commands in steps {
            // Link counts of the layers below are other ones on a plain tree, and `cp -a` copies links.
            let commands = commands.join("\n").replace("cp -a", "cp -rP --preserve=mode,ownership,timestamps,xattr");
            both.step(&format!("set +e\n{commands}\ntrue"));
        }
    }
}
