// `call.mjs LIBRARY URL` prints the answer's body.
import https from "node:https";

const [library, url] = process.argv.slice(2);
if (library === "fetch") {
  console.log(await (await fetch(url)).text());
} else {
  https.get(url, (answer) => answer.pipe(process.stdout)).on("error", (error) => {
    console.error(error);
    process.exitCode = 1;
  });
}
