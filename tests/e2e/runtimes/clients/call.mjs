// `call.mjs LIBRARY URL` prints the answer's body; without a URL, with fetch, that of each line that it is told.
import https from "node:https";
import readline from "node:readline";

const [library, url] = process.argv.slice(2);
if (library === "fetch") {
  for await (const one of url ? [url] : readline.createInterface({ input: process.stdin })) {
    console.log(await (await fetch(one)).text());
  }
} else {
  https.get(url, (answer) => answer.pipe(process.stdout)).on("error", (error) => {
    console.error(error);
    process.exitCode = 1;
  });
}
