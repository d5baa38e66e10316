mod cases;
mod detection;
mod grammar;
mod parsing;
