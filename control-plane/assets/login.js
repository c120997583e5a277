// A token in the address's fragment never reaches a server or its log: take it, forget it, sign in.
"use strict";
const token = location.hash.slice(1);
if (token.startsWith("skp_")) {
  history.replaceState(null, "", location.pathname);
  document.getElementById("token").value = token;
  document.getElementById("login").submit();
}
