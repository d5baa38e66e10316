// What the mock server's models say.

export const MARKDOWN = `# First heading

A paragraph with **bold**, *italic*, ***both***, ~~gone~~, \`code with <b>\`, and a [link](https://example.org/a?b=c "title").
A second line, an autolink <https://example.org/auto>, a bare https://example.org/bare_one, (and https://en.example.org/x_(y)). Grüße, 日本語 and 🦀.

## Lists

- one
  - nested **deep**
    - deeper
- two

  a second paragraph of two
- [ ] open task
- [x] done task

1. first
2. second
   - inside
3. third

7) seventh

> A quote with *emphasis*
> over two lines
> - and a list

---

| Name | Speed | Note |
|:-----|------:|:----:|
| a \`x|y\` | 12.5 | **ok** |
| b | 1,000 | [l](https://example.org/t) |
| c | | \\| bar |

\`\`\`rust
/// Adds.
fn main() -> Result<(), Error> {
    let name: &'static str = "x"; // comment
    /* over
       lines */
    println!("{name} {}", 0x1F + 2);
}
\`\`\`

\`\`\`python
@cached
def f(x: int) -> str:
    """doc
    string"""
    return f"{x}"  # note
\`\`\`

\`\`\`js
const t = \`a
b\`; /* c */ await f(1e3);
\`\`\`

\`\`\`json
{"a": [1, true, null, "s"]}
\`\`\`

\`\`\`bash
for f in *.rs; do echo "$f" --flag; done # all
\`\`\`

\`\`\`cpp
#include <vector>
int main() { return 0; } // end
\`\`\`

\`\`\`html
<!-- note --><a href="x">y</a>
\`\`\`

\`\`\`css
.a:hover { color: #fff; }
\`\`\`

\`\`\`sql
SELECT name FROM users WHERE id = 1; -- one
\`\`\`

\`\`\`toml
[package]
name = "x" # y
\`\`\`

\`\`\`yaml
key: value
list: [1, 2]
\`\`\`

~~~
plain
\`\`\`
still plain
~~~

2 * 3 * 4 = 24, snake_case_name, a\\*b, 5 < 6 && 7 > 6.

### Last heading ###
The end.`;

export const XSS = `<script>window.pwned = 1</script>
<img src=x onerror="window.pwned = 2"> <svg onload="window.pwned = 3"> <iframe src="javascript:parent.pwned=4"></iframe>

[click](javascript:window.pwned=5) [click](JaVaScRiPt:window.pwned=6) [click](data:text/html,<script>window.pwned=7</script>)
[click]( java\tscript:window.pwned=8) [click](vbscript:x) [rel](/v1/models) [ok](https://example.org/"onmouseover="window.pwned=9)
![image](https://evil.example/x.png) ![inline](data:image/svg+xml,<svg onload=alert(1)>) <javascript:window.pwned=10> <https://example.org/"onclick="window.pwned=11>

\`<script>window.pwned = 12</script>\`

\`\`\`html"onload="window.pwned=13
<script>window.pwned = 14</script><img src=x onerror=window.pwned=15>
\`\`\`

\`\`\`__proto__
<b>x</b>
\`\`\`

| <script>window.pwned = 16</script> | b |
|---|---|
| <img src=x onerror=window.pwned=17> | [x](javascript:window.pwned=18) |

# <style>body{display:none}</style>

- <a href="javascript:window.pwned=19" onclick="window.pwned=20">a</a>
`;

const paragraph = "A paragraph with **bold** words and `code`, *emphasis* and [a link](https://example.org/). ";

/** Some 600 KB: many blocks, one very long paragraph, unmatched marks, one very long line of code. */
export const GIANT = [
  ...Array.from({ length: 1200 }, (_, at) => `## Part ${at}\n\n${paragraph.repeat(2)}\n\n- item\n- item\n\n`),
  paragraph.repeat(800),
  "\n\n",
  "*a **b `c [d ".repeat(3000),
  "\n\n```js\n",
  "let x = 1; ".repeat(6000),
  "\n",
  "let y = 2;\n".repeat(3000),
  "```\n\nTHE END",
].join("");
