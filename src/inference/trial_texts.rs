//! The texts of a [trial of precision](super::divergence::PrecisionTrial): prose, code, a table, a dialogue, and other languages.

/// The texts, each of more than a hundred tokens.
pub const TRIAL_TEXTS: [&str; 6] = [
    "The harbour of the little town had been built for herring boats, and when the herring left, the boats left too. What \
     remained were three cranes, a customs house with broken windows, and a lighthouse that nobody had switched off. Every \
     evening the keeper's daughter walked out along the pier to count the flashes. Five, then a pause of nine seconds, then \
     five again. Her father had told her that a light which changes its rhythm is worse than no light at all, because \
     sailors steer by what they remember. In the spring of that year a ship came in whose captain remembered six.",
    "use std::collections::HashMap;\n\n/// Counts how often each word occurs in a text.\nfn count_words(text: &str) -> \
     HashMap<String, usize> {\n    let mut counts = HashMap::new();\n    for word in text.split_whitespace() {\n        let \
     word = word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();\n        if !word.is_empty() {\n            \
     *counts.entry(word).or_insert(0) += 1;\n        }\n    }\n    counts\n}\n\nfn main() {\n    let counts = \
     count_words(\"to be or not to be\");\n    let mut words: Vec<_> = counts.into_iter().collect();\n    \
     words.sort_by(|a, b| b.1.cmp(&a.1));\n",
    "Question: A train leaves the station at 9:40 and travels 150 kilometres at 60 kilometres per hour. It then waits for 15 \
     minutes and returns at 75 kilometres per hour. When does it arrive?\nAnswer: The way out takes 150 / 60 = 2.5 hours, so \
     the train arrives at 12:10. After the break it is 12:25. The way back takes 150 / 75 = 2 hours, so the train is back at \
     14:25.\n\nQuestion: A shop sells pencils at 0.40 each and notebooks at 2.50 each. How much do 12 pencils and 3 notebooks \
     cost?\nAnswer: The pencils cost 12 * 0.40 = 4.80, and the notebooks",
    "{\"order\": 4711, \"customer\": {\"name\": \"Ida Lindqvist\", \"city\": \"Uppsala\"}, \"items\": [{\"sku\": \"K-20\", \
     \"name\": \"kettle\", \"quantity\": 1, \"price\": 39.9}, {\"sku\": \"C-07\", \"name\": \"cup\", \"quantity\": 6, \"price\": \
     4.5}], \"shipping\": {\"method\": \"post\", \"days\": 3}, \"total\": 66.9}\n{\"order\": 4712, \"customer\": {\"name\": \
     \"Jonas Weber\", \"city\": \"Bremen\"}, \"items\": [{\"sku\": \"L-31\", \"name\": \"lamp\", \"quantity\": 2, \"price\": \
     25.0}], \"shipping\": {\"method\": \"courier\", \"days\": 1}, \"total\":",
    "Die Sitzung des Gemeinderats begann um acht Uhr abends. Auf der Tagesordnung standen der Haushalt, die neue Brücke und \
     der Antrag der Schule auf einen größeren Sportplatz. Der Kämmerer erklärte, dass die Einnahmen im vergangenen Jahr um \
     vier Prozent gestiegen seien, die Ausgaben aber um sieben. Frau Berger fragte, ob man die Brücke nicht auch in zwei \
     Abschnitten bauen könne. Nach langer Diskussion wurde beschlossen, zunächst nur den südlichen Teil zu erneuern und im \
     Herbst noch einmal über den nördlichen zu sprechen.",
    "User: My code prints the same number ten times. What is wrong?\nAssistant: A loop variable is probably captured by \
     reference, so that every closure sees its last value. Can you show me the loop?\nUser: It is `for (var i = 0; i < 10; \
     i++) setTimeout(() => console.log(i), 10);`\nAssistant: Yes. `var` has one binding for the whole function, and the \
     callbacks run after the loop has ended, when `i` is 10. Use `let` instead of `var`: it makes a new binding for every \
     iteration.\nUser: Thank you, that works. And why did it print ten and not nine?\nAssistant: Because the loop ends when",
];
