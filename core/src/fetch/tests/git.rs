use super::secrets as _;
