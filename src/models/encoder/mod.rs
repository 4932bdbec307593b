mod bert;
pub use bert::{Bert, BertConfig};
