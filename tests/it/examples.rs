//! README.md shows the examples as they stand in `examples/`, which `tests/sdk/run` and `tests/suites/run` run.

use std::fs;
use std::path::Path;

#[test]
fn readme_shows_every_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let mut n_examples = 0;
    for (folder, language) in [("curl", "sh"), ("python", "python"), ("node", "js")] {
        for entry in fs::read_dir(root.join("examples").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let block = format!("```{language}\n{}```\n", fs::read_to_string(&path).unwrap());
            assert!(readme.contains(&block), "README.md does not show {path:?} as it stands:\n{block}");
            n_examples += 1;
        }
    }
    assert!(n_examples > 0);
}
