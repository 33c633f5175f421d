//! What moves, what stays, what is refused.

use super::super::*;
use super::tools::*;

#[test]
fn a_stage_and_the_container_change_places_and_back() {
    isolated(|| {
        let world = World::ordinary();
        let (root, stage) = (world.root_facts(), world.stage_facts());
        let exchange = world.exchange();
        assert_eq!(exchange.repair().unwrap(), Repaired::Nothing);
        let swapped = world.plan(&exchange).unwrap().swap_in().unwrap();
        world.at_root(
            "[ $(cat etc/passwd) = stage ] && [ $(cat bin/tool) = x ] && [ $(cat etc/hosts) = runtime ]
             [ ! -e etc/ssl ] && [ ! -e home ] && [ ! -e sh ]
             [ $(stat -c %a etc) = 740 ]",
        );
        assert_eq!(attribute(&world.root.join("etc"), "user.who").as_deref(), Some("stage"));
        assert_eq!(attribute(&world.root.join("etc"), "system.posix_acl_default"), None);
        assert_eq!(attribute(&world.root, "user.top").as_deref(), Some("t"));
        assert_eq!(attribute(&world.root, "user.root"), None);
        let names: Vec<_> = swapped.renamed().iter().map(|entry| entry.path.to_string()).collect();
        assert_eq!(
            names,
            ["/bin", "/new", "/proc", "/usr", "/var", "/etc/apt", "/etc/passwd", "/etc/passwd-"]
        );
        let before = swapped.renamed().to_vec();
        let out = swapped.swap_out().unwrap();
        assert_eq!(out.renamed, before);
        assert!(out.levels.iter().all(|level| !level.changed) && out.levels.len() == 2);
        assert!(out.rewritten.is_empty() && out.lost.is_empty());
        assert_same("root", &root, &world.root_facts());
        assert_same("stage", &stage, &world.stage_facts());
        world.assert_side_is_tidy();
    });
}
